//! An operator and its world: edits, passes, and what became of it all.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::ResourceExt;
use kube::runtime::events::{Recorder, Reporter};
use kvcluster_crds::v1alpha1::KvCluster;
use serde_json::{Value, json};

use super::api::ApiServer;
use super::faults::Faults;
use super::{kubelet, outside};
use crate::controller::pass::{Context, Outcome, pass};
use crate::controller::{Memory, PassError};
use crate::fixtures::{ClusterBuilder, now};
use crate::metrics::Metrics;

const IMAGE: &str = "image";
/// Rounds after which a world that is not at rest never will be.
const ROUNDS_MAX: usize = 600;
/// Rounds in which nothing happens before a world counts as at rest.
const QUIET_ROUNDS: usize = 8;

/// See the module.
pub(super) struct World {
    pub(super) faults: Faults,
    pub(super) api: ApiServer,
    pub(super) outside: outside::World,
    context: Context,
}

/// What a run came to.
#[derive(Debug, PartialEq)]
pub(super) struct End {
    pub(super) objects: BTreeMap<String, Value>,
    pub(super) outside: Vec<String>,
    pub(super) made: BTreeMap<String, usize>,
}

impl World {
    /// A cluster that was just applied.
    pub(super) fn new(cluster: &ClusterBuilder) -> Self {
        let faults = Faults::default();
        let api = ApiServer::new(&faults);
        let outside = outside::World::new(&api, &faults);
        let url = "postgres://boss:secret@db:5432/app";
        api.put("secrets", &admin(url));
        api.put("kvclusters", &cluster.build());
        let context = operator(&api, &outside);
        Self {
            faults,
            api,
            outside,
            context,
        }
    }

    /// The same world once more, with an operator that was just started.
    pub(super) fn fork(&self) -> Self {
        let faults = self.faults.fork();
        let api = self.api.fork(&faults);
        let outside = self.outside.fork(&api, &faults);
        let context = operator(&api, &outside);
        Self {
            faults,
            api,
            outside,
            context,
        }
    }

    /// Another operator that is at work in this very world.
    pub(super) fn with_another_operator(&self) -> Self {
        Self {
            faults: self.faults.clone(),
            api: self.api.clone(),
            outside: self.outside.clone(),
            context: operator(&self.api, &self.outside),
        }
    }

    /// What an operator had sent that was stopped in the middle arrives.
    pub(super) fn deliver_late(&self) {
        self.api.deliver_late();
        self.outside.deliver_late();
    }

    /// The user changes the cluster.
    pub(super) fn edit(&self, change: impl FnOnce(&mut KvCluster)) {
        let mut cluster = self.cluster().expect("it is there");
        change(&mut cluster);
        self.api.put("kvclusters", &cluster);
    }

    /// There is a Kubernetes node of this name; it takes pods, or it is cordoned.
    pub(super) fn host(&self, name: &str, cordoned: bool) {
        let node = json!({
            "metadata": { "name": name, "uid": format!("uid of {name}") },
            "spec": { "unschedulable": cordoned },
        });
        self.api.put("nodes", &node);
    }

    /// The user deletes the cluster.
    pub(super) fn delete(&self) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        if cluster.finalizers().is_empty() {
            self.api.remove("kvclusters", &cluster.name_any());
        } else {
            self.edit(|cluster| {
                let since = serde_json::from_value(json!(now())).expect("a time");
                cluster.metadata.deletion_timestamp = Some(since);
            });
        }
    }

    /// The administrator's URL is another one.
    pub(super) fn set_admin_url(&self, url: &str) {
        self.api.put("secrets", &admin(url));
    }

    pub(super) fn cluster(&self) -> Option<KvCluster> {
        self.api.all("kvclusters").into_iter().next()
    }

    /// One pass; none when the operator was killed in it. A new process then takes over, which remembers nothing.
    pub(super) async fn pass(&mut self) -> Option<Result<Outcome, PassError>> {
        let Some(cluster) = self.cluster() else {
            return Some(Ok(Outcome::Gone));
        };
        let done = tokio::select! {
            done = pass(&self.context, &cluster) => Some(done),
            () = self.faults.killed() => None,
        };
        if done.is_none() {
            self.context = operator(&self.api, &self.outside);
        }
        done
    }

    /// Everything takes its steps until nothing moves any more; how the last pass ended.
    pub(super) async fn settle(&mut self) -> Result<Outcome, String> {
        self.settle_with(|_, _| {}).await
    }

    /// The same; `look` is shown the world before each round.
    pub(super) async fn settle_with(
        &mut self,
        mut look: impl FnMut(usize, &Self),
    ) -> Result<Outcome, String> {
        let mut quiet = 0;
        let mut last = None;
        for round in 0..ROUNDS_MAX {
            look(round, self);
            let moved = kubelet::tick(&self.api) | self.outside.tick();
            self.outside.check()?;
            let writes = self.faults.writes().len();
            let done = self.pass().await;
            self.outside.check()?;
            self.check_ready()?;
            let wrote = self.faults.writes().len() > writes;
            let failed = !matches!(done, Some(Ok(_)));
            quiet = if moved || wrote || failed {
                0
            } else {
                quiet + 1
            };
            if let (QUIET_ROUNDS.., Some(Ok(outcome))) = (quiet, &done) {
                return Ok(*outcome);
            }
            last = done;
        }
        let newest = self.faults.writes().into_iter().rev().take(5);
        Err(format!(
            "no rest: {last:?}; last writes {:?}",
            newest.collect::<Vec<_>>()
        ))
    }

    /// The same until something was written whose words contain `text`.
    pub(super) async fn settle_until(&mut self, text: &str) -> Result<(), String> {
        for _ in 0..ROUNDS_MAX {
            kubelet::tick(&self.api);
            self.outside.tick();
            self.pass().await;
            let writes = self.faults.writes();
            if writes.iter().any(|write| write.contains(text)) {
                return Ok(());
            }
        }
        let writes = self.faults.writes();
        Err(format!("{text:?} was never written: {writes:?}"))
    }

    /// Nothing is called ready that is not served: as many members as are wanted, and every pod made from what is wanted now.
    fn check_ready(&self) -> Result<(), String> {
        let Some(cluster) = self.cluster() else {
            return Ok(());
        };
        let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
        let mut ready = conditions.filter(|of| of.type_ == "Ready" && of.status == "True");
        let is_about_now = |of: &Condition| of.observed_generation == cluster.metadata.generation;
        if cluster.spec.paused || !ready.any(is_about_now) {
            return Ok(());
        }
        let image = cluster.spec.image.as_deref().unwrap_or(IMAGE);
        let mut pods: Vec<Pod> = self.api.all("pods");
        pods.retain(|pod| pod.namespace() == cluster.namespace());
        let runs = |pod: &Pod| {
            let spec = pod.spec.as_ref();
            let own = spec.and_then(|spec| spec.containers[0].image.as_deref());
            own == Some(image)
        };
        let nodes = usize::try_from(cluster.spec.nodes).unwrap_or_default();
        let members = self
            .outside
            .published()
            .map_or(0, |table| table.nodes.len());
        if members == nodes && pods.len() == nodes && pods.iter().all(runs) {
            return Ok(());
        }
        Err(format!(
            "ready with {members} members and {} pods: {cluster:#?}",
            pods.len()
        ))
    }

    pub(super) fn end(&self) -> End {
        End {
            objects: self.api.everything(),
            outside: self.outside.everything(),
            made: self.api.made(),
        }
    }
}

fn admin(url: &str) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some("admin".to_owned()),
            namespace: Some("shop".to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            "url".to_owned(),
            ByteString(url.as_bytes().to_vec()),
        )])),
        ..Secret::default()
    }
}

fn operator(api: &ApiServer, outside: &outside::World) -> Context {
    let client = api.client();
    let reporter = Reporter {
        controller: "test".to_owned(),
        instance: None,
    };
    Context {
        client: client.clone(),
        outside: Box::new(outside.clone()),
        now,
        recorder: Recorder::new(client, reporter),
        metrics: std::sync::Arc::new(Metrics::default()),
        memory: Memory::default(),
        node_image: IMAGE.to_owned(),
    }
}
