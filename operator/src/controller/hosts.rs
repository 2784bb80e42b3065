//! Which clusters a change of a Kubernetes node is news for.
//!
//! The kubelet writes its Node every few minutes. Only what passes look at counts here: whether it is ready, being emptied, and in
//! which zone.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::Memory;
use crate::observe::HostView;

/// The Kubernetes nodes as one watch saw them last.
pub(super) struct Hosts {
    /// The namespace of the clusters that this watch is for; none: all.
    namespace: Option<String>,
    seen: Mutex<HashMap<String, HostView>>,
}

impl Hosts {
    pub(super) fn new(namespace: Option<String>) -> Self {
        Self {
            namespace,
            seen: Mutex::default(),
        }
    }

    /// The clusters, by namespace and name, that have a pod on `node` and have not seen it as it is now.
    pub(super) fn concerned(&self, memory: &Memory, node: &Node) -> Vec<(String, String)> {
        let (name, view) = (node.name_any(), HostView::of(node));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.insert(name.clone(), view.clone());
        if before.as_ref() == Some(&view) {
            return Vec::new();
        }
        let mut clusters = memory.on_host(&name);
        clusters.retain(|(of, _)| self.namespace.as_ref().is_none_or(|only| only == of));
        clusters
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: &Value, heartbeat: &str) -> Node {
        let ready = json!({ "type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat });
        let node = json!({ "metadata": { "name": "worker" }, "spec": spec,
                           "status": { "conditions": [ready] } });
        serde_json::from_value(node).expect("a Node")
    }

    #[test]
    fn a_cordon_is_news_for_the_clusters_there_and_a_heartbeat_for_none() {
        let memory = Memory::default();
        for (namespace, host) in [("shop", "worker"), ("bank", "worker"), ("lab", "other")] {
            memory.note(namespace, "demo", |cluster| {
                cluster.hosts.insert(host.to_owned());
            });
        }
        let there = |names: &[&str]| -> Vec<(String, String)> {
            let places = names.iter();
            let places = places.map(|name| ((*name).to_owned(), "demo".to_owned()));
            places.collect()
        };
        let (all, one) = (Hosts::new(None), Hosts::new(Some("shop".to_owned())));
        let first = node(&json!({}), "2026-01-01T00:00:00Z");
        let later = node(&json!({}), "2026-01-01T00:05:00Z");
        let cordoned = node(&json!({ "unschedulable": true }), "2026-01-01T00:05:00Z");
        for (seen, both) in [(first, true), (later, false), (cordoned, true)] {
            let mut told = all.concerned(&memory, &seen);
            told.sort();
            assert_eq!(told, there(if both { &["bank", "shop"] } else { &[] }));
            let told = one.concerned(&memory, &seen);
            assert_eq!(told, there(if both { &["shop"] } else { &[] }));
        }
    }
}
