//! What a pass looks at and changes outside of Kubernetes: Kafka, PostgreSQL and the nodes themselves. Behind a trait, so that
//! whole passes can run against a world in memory that fails where a test wants it to.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use futures::future::BoxFuture;
use kvcluster_crds::{NodeId, NodeStatus};

use crate::clients::kafka::{KafkaClients, KafkaTrouble};
use crate::cluster::Target;
use crate::execute::{self, ExecuteError};
use crate::observe::nodes::StatusClient;
use crate::observe::{self, AdminUrls, KafkaView, NodeSecret, NodeTrouble, PodView, PostgresViews};
use crate::plan::Step;

/// Kafka, as it was seen.
pub type KafkaSeen = Result<KafkaView, KafkaTrouble>;
/// What the nodes say.
pub type Statuses = BTreeMap<NodeId, Result<NodeStatus, NodeTrouble>>;

/// See the module.
pub trait Outside: Send + Sync + 'static {
    /// Looks at Kafka.
    fn kafka<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, KafkaSeen>;

    /// Looks at PostgreSQL; `nodes`: whose schemas may be there.
    fn postgres<'a>(
        &'a self,
        target: &'a Target,
        admin_urls: AdminUrls,
        nodes: &'a BTreeSet<NodeId>,
        secrets: &'a BTreeMap<NodeId, NodeSecret>,
    ) -> BoxFuture<'a, PostgresViews>;

    /// Asks nodes for their status.
    fn ask<'a>(
        &'a self,
        target: &'a Target,
        nodes: &'a BTreeSet<NodeId>,
        pods: &'a BTreeMap<NodeId, PodView>,
    ) -> BoxFuture<'a, Statuses>;

    /// Executes a step that is about Kafka or PostgreSQL; `None` when it is about something else.
    fn execute<'a>(
        &'a self,
        target: &'a Target,
        step: &'a Step,
    ) -> BoxFuture<'a, Option<Result<(), ExecuteError>>>;
}

/// The real ones.
#[derive(Default)]
pub struct Services {
    kafka: KafkaClients,
    nodes: StatusClient,
}

impl Outside for Services {
    fn kafka<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, KafkaSeen> {
        observe::kafka_view(&self.kafka, target).boxed()
    }

    fn postgres<'a>(
        &'a self,
        target: &'a Target,
        admin_urls: AdminUrls,
        nodes: &'a BTreeSet<NodeId>,
        secrets: &'a BTreeMap<NodeId, NodeSecret>,
    ) -> BoxFuture<'a, PostgresViews> {
        observe::postgres_views(target, admin_urls, nodes, secrets).boxed()
    }

    fn ask<'a>(
        &'a self,
        target: &'a Target,
        nodes: &'a BTreeSet<NodeId>,
        pods: &'a BTreeMap<NodeId, PodView>,
    ) -> BoxFuture<'a, Statuses> {
        self.nodes.ask(&target.uid, nodes, pods).boxed()
    }

    fn execute<'a>(
        &'a self,
        target: &'a Target,
        step: &'a Step,
    ) -> BoxFuture<'a, Option<Result<(), ExecuteError>>> {
        execute::external(&self.kafka, target, step).boxed()
    }
}
