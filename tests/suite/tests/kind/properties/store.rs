//! A small store that is edited, and how it looks from outside.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvcluster_crds::NodeId;
use kvcluster_suite::lab::{Lab, SCHEMA_PREFIX};
use kvcluster_suite::poll;
use serde_json::{Map, Value, json};

use crate::support::{Own, topic_tool};

/// Longest time until an edit is served, or a bad one is told of.
const EDIT_LIMIT: Duration = Duration::from_mins(2);
/// Name of the stores that an edited one is held against.
const FRESH: &str = "fresh";

/// See the module.
pub(super) struct Store<'a> {
    lab: &'a Lab,
    own: &'a Own,
    name: &'static str,
}

impl<'a> Store<'a> {
    /// Makes one, with something else in its spec, and waits until it is Ready.
    pub(super) fn make(
        lab: &'a Lab,
        own: &'a Own,
        name: &'static str,
        spec: &Value,
    ) -> Result<Self> {
        let mut manifest = own.manifest(name);
        super::merge(&mut manifest["spec"], spec.clone());
        own.bring(&manifest)?;
        Ok(Self { lab, own, name })
    }

    /// Another one, made as this one was and with something else in its spec.
    pub(super) fn sibling(&self, spec: &Value) -> Result<Self> {
        Self::make(self.lab, self.own, FRESH, spec)
    }

    pub(super) fn delete(self) -> Result<()> {
        let delete = ["-n", &self.own.namespace, "delete", "kvcluster", self.name];
        self.own.kubectl.run_within(EDIT_LIMIT, &delete)?;
        // Its pods would be taken for those of the next one of this name.
        for pod in self.pods()? {
            let pod = name_of(&pod).to_owned();
            self.own
                .kubectl
                .gone(&self.own.namespace, "pod", &pod, EDIT_LIMIT)?;
        }
        Ok(())
    }

    /// Merges into the spec.
    pub(super) fn edit(&self, spec: &Value) -> Result<()> {
        self.own.patch(self.name, spec)
    }

    fn object(&self) -> Result<Value> {
        let object = self
            .own
            .kubectl
            .get(&self.own.namespace, "kvcluster", self.name)?;
        object.context("it exists")
    }

    /// What the spec says now.
    pub(super) fn value(&self, path: &str) -> Result<Value> {
        let pointer = format!("/spec/{}", path.replace('.', "/"));
        Ok(self
            .object()?
            .pointer(&pointer)
            .cloned()
            .unwrap_or(Value::Null))
    }

    /// Waits for Ready as a user does; at that very moment what was edited is there.
    pub(super) fn expect_served(&self) -> Result<()> {
        let timeout = format!("--timeout={}s", EDIT_LIMIT.as_secs());
        let store = format!("kvcluster/{}", self.name);
        let wait = [
            "-n",
            &self.own.namespace,
            "wait",
            "--for=condition=Ready",
            &store,
            &timeout,
        ];
        let waited = self.own.kubectl.run_within(EDIT_LIMIT, &wait);
        waited.with_context(|| {
            self.object().map_or_else(
                |error| format!("{error:#}"),
                |object| object["status"].to_string(),
            )
        })?;
        let object = self.object()?;
        let sets = self.list("statefulsets")?;
        let pods = self.pods()?;
        let nodes = object["spec"]["nodes"].as_u64().context("spec.nodes")?;
        ensure!(
            sets.len() as u64 == nodes && pods.len() as u64 == nodes,
            "{} sets, {} pods",
            sets.len(),
            pods.len()
        );
        for set in &sets {
            let (status, name) = (&set["status"], name_of(set));
            ensure!(
                status["observedGeneration"] == set["metadata"]["generation"],
                "{name} is not looked at: {status}"
            );
            let pod = pods.iter().find(|pod| name_of(pod) == format!("{name}-0"));
            let pod = pod.with_context(|| format!("{name} has no pod"))?;
            let revision = &pod["metadata"]["labels"]["controller-revision-hash"];
            ensure!(
                *revision == status["updateRevision"],
                "the pod of {name} is of {revision}: {status}"
            );
            let conditions = pod["status"]["conditions"].as_array();
            let mut ready = conditions.into_iter().flatten();
            ensure!(
                ready
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
                "the pod of {name} is not ready"
            );
        }
        Ok(())
    }

    /// Waits until some condition tells of what the current spec has wrong, and gives its message.
    pub(super) fn expect_stopped(&self) -> Result<String> {
        poll::until(EDIT_LIMIT, "a condition that tells of it", || {
            let object = self.object()?;
            let generation = &object["metadata"]["generation"];
            let conditions = object["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let find = |kind: &str, status: &str| {
                let mut found = conditions.iter();
                found
                    .find(|one| {
                        one["type"] == kind
                            && one["status"] == status
                            && one["observedGeneration"] == *generation
                    })
                    .cloned()
            };
            let told = find("Ready", "False").zip(find("Degraded", "True"));
            let told = told.with_context(|| object["status"].to_string())?;
            Ok(Some(format!(
                "{}: {}",
                text(&told.0["reason"]),
                text(&told.1["message"])
            )))
        })
    }

    fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let label = format!("kvcluster.dev/cluster={}", self.name);
        self.own.kubectl.list(&self.own.namespace, kind, &label)
    }

    fn pods(&self) -> Result<Vec<Value>> {
        self.list("pods")
    }

    /// All that was made for it, without what differs from store to store: names, ids, addresses, numbers of versions.
    pub(super) fn looks(&self) -> Result<Value> {
        let mut all = Map::new();
        for kind in ["statefulsets", "services", "poddisruptionbudgets"] {
            for mut object in self.list(kind)? {
                let spec = object["spec"].take();
                let mut metadata = object["metadata"].take();
                // A hash of the whole object, names included.
                if let Some(annotations) = metadata["annotations"].as_object_mut() {
                    annotations.remove("kvcluster.dev/applied");
                }
                let seen = json!({
                    "spec": spec,
                    "labels": metadata["labels"],
                    "annotations": metadata["annotations"],
                });
                all.insert(format!("{kind} {}", text(&metadata["name"])), seen);
            }
        }
        let names = self.own.names(self.name);
        let topics = topic_tool(
            &self.own.kubectl,
            &["--describe", "--topic", &names.log_topic()],
        )?;
        // One line for the topic: its settings are at the end.
        let settings = topics
            .lines()
            .next()
            .and_then(|line| line.split("Configs:").nth(1));
        all.insert(
            "log topic".to_owned(),
            json!(settings.unwrap_or_default().trim()),
        );
        let object = self.object()?;
        let mut all = serde_json::to_string(&all)?;
        let schema = names.schema(SCHEMA_PREFIX, NodeId(0));
        let schema = schema.trim_end_matches('0');
        for (own, neutral) in [
            (schema, "SCHEMA_"),
            (text(&object["metadata"]["uid"]), "UID"),
            (text(&object["status"]["logId"]), "LOG"),
            (self.name, "STORE"),
        ] {
            all = all.replace(own, neutral);
        }
        let mut all: Value = serde_json::from_str(&all)?;
        all.as_object_mut()
            .into_iter()
            .flatten()
            .for_each(|(_, seen)| forget_addresses(seen));
        Ok(all)
    }
}

/// What the API server chose itself.
fn forget_addresses(seen: &mut Value) {
    let Some(spec) = seen.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for chosen in ["clusterIP", "clusterIPs"] {
        if spec
            .get(chosen)
            .is_some_and(|address| *address != json!("None") && *address != json!(["None"]))
        {
            spec.remove(chosen);
        }
    }
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    ports
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
        .for_each(|port| {
            port.remove("nodePort");
        });
}

/// Where two looks differ.
pub(super) fn differences(one: &Value, other: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(one, other, "", &mut found);
    found
}

fn compare(one: &Value, other: &Value, path: &str, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(ones), Value::Object(others)) => {
            let names: BTreeSet<&String> = ones.keys().chain(others.keys()).collect();
            for name in names {
                compare(
                    &one[name.as_str()],
                    &other[name.as_str()],
                    &format!("{path}/{name}"),
                    found,
                );
            }
        }
        (Value::Array(ones), Value::Array(others)) if ones.len() == others.len() => {
            for (index, (one, other)) in ones.iter().zip(others).enumerate() {
                compare(one, other, &format!("{path}/{index}"), found);
            }
        }
        _ if one != other => found.push(format!("{path}: {one} and {other}")),
        _ => {}
    }
}

fn name_of(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
