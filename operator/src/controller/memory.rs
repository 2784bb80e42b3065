//! What the process remembers between passes. Losing it, as a restart does, costs time and never safety.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use kvcluster_crds::NodeId;

use crate::observe::{Failure, ObjectsView};
use crate::outside::Statuses;
use crate::secret_text::SecretText;

/// What is remembered of all clusters, by namespace and name.
#[derive(Default)]
pub struct Memory {
    clusters: Mutex<HashMap<(String, String), Remembered>>,
}

/// What is remembered of one cluster.
#[derive(Clone, Default)]
pub struct Remembered {
    /// UID of the cluster: another one of the same name is a stranger.
    pub uid: String,
    /// Errors in a row.
    pub failures: u32,
    /// The step that failed last.
    pub failure: Option<Failure>,
    /// Passes in a row that saw no topic.
    pub topics_absent_passes: u32,
    /// Admin URLs that were read: when a namespace is deleted, its Secrets go before the schemas can be dropped.
    pub admin_urls: BTreeMap<String, SecretText>,
    /// Nodes that had a schema or role when PostgreSQL was last looked at.
    pub marked: BTreeSet<NodeId>,
    /// The zones that nodes ran in when that was last known: a pod that starts anew has none for a moment.
    pub zones: BTreeMap<NodeId, String>,
    /// The Kubernetes nodes that pods are on.
    pub hosts: BTreeSet<String>,
    /// Since when Kubernetes nodes are gone that pods are on.
    pub gone_since: BTreeMap<String, Timestamp>,
    /// Since when nodes say that something is wrong with them.
    pub troubled_since: BTreeMap<NodeId, Timestamp>,
}

impl Remembered {
    /// Takes in what was seen of the Kubernetes nodes, and gives the zones as far as they are known.
    pub fn see_hosts(&mut self, objects: &ObjectsView) -> BTreeMap<NodeId, String> {
        let hosts = &objects.hosts;
        self.gone_since = hosts
            .iter()
            .filter_map(|(name, host)| Some((name.clone(), host.lost_since?)))
            .collect();
        let named = objects.pods.values().filter_map(|pod| pod.host.clone());
        self.hosts = named.collect();
        for (&node, pod) in &objects.pods {
            let host = pod.host.as_ref().and_then(|name| hosts.get(name));
            if let Some(zone) = host.and_then(|host| host.zone.clone()) {
                self.zones.insert(node, zone);
            }
        }
        self.zones.clone()
    }

    /// Takes in what the nodes say.
    pub fn see_nodes(&mut self, statuses: &Statuses, now: Timestamp) {
        let troubled = statuses.iter().filter(|(_, answer)| {
            let problem = answer
                .as_ref()
                .ok()
                .and_then(|status| status.problem.as_ref());
            problem.is_some()
        });
        self.troubled_since = troubled
            .map(|(&node, _)| (node, self.troubled_since.get(&node).copied().unwrap_or(now)))
            .collect();
    }
}

impl Memory {
    /// What is remembered of a cluster.
    pub fn recall(&self, namespace: &str, name: &str, uid: &str) -> Remembered {
        let mut clusters = self.lock();
        let entry = clusters
            .entry((namespace.to_owned(), name.to_owned()))
            .or_default();
        if entry.uid != uid {
            *entry = Remembered {
                uid: uid.to_owned(),
                ..Remembered::default()
            };
        }
        entry.clone()
    }

    /// Changes what is remembered of a cluster that was recalled before.
    pub fn note(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Remembered)) {
        change(
            self.lock()
                .entry((namespace.to_owned(), name.to_owned()))
                .or_default(),
        );
    }

    /// Counts an error; how many there were in a row.
    pub fn failures(&self, namespace: &str, name: &str) -> u32 {
        let mut clusters = self.lock();
        let entry = clusters
            .entry((namespace.to_owned(), name.to_owned()))
            .or_default();
        entry.failures = entry.failures.saturating_add(1);
        entry.failures
    }

    /// The clusters, by namespace and name, that had a pod on this Kubernetes node when they were last looked at.
    pub fn on_host(&self, host: &str) -> Vec<(String, String)> {
        let clusters = self.lock();
        let there = clusters.iter().filter(|(_, of)| of.hosts.contains(host));
        there.map(|(place, _)| place.clone()).collect()
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Remembered>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_cluster_of_the_same_name_is_a_stranger() {
        let memory = Memory::default();
        memory.recall("ns", "demo", "one");
        memory.note("ns", "demo", |cluster| cluster.topics_absent_passes = 2);
        assert_eq!(memory.recall("ns", "demo", "one").topics_absent_passes, 2);
        assert_eq!(memory.recall("ns", "demo", "other").topics_absent_passes, 0);
    }

    #[test]
    fn errors_are_counted_until_forgotten() {
        let memory = Memory::default();
        assert_eq!(
            (memory.failures("ns", "a"), memory.failures("ns", "a")),
            (1, 2)
        );
        memory.forget("ns", "a");
        assert_eq!(memory.failures("ns", "a"), 1);
    }
}
