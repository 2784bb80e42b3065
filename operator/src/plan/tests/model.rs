//! The world in memory: Kafka, PostgreSQL, Kubernetes and nodes, as far as plans see them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kvcluster_crds::{Assignment, LogId, NodeId, NodeStatus, Offset};

use crate::cluster::Target;
use crate::fixtures::{ClusterBuilder, now, role_and_schema, topic_view};
use crate::observe::kubernetes::node_of_set;
use crate::observe::{
    AssignmentView, KafkaView, Login, NodeSecret, NodeTrouble, ObjectsView, PodView, PostgresView,
    World,
};
use crate::plan::{Object, Plan, Step, Truth, plan};
use crate::secret_text::{self, SecretText};

pub(super) const IMAGE: &str = "image";
pub(super) const LOG_ID: LogId = LogId(7);
const ADMIN: &str = "postgres://boss:secret@db:5432/app";
/// No plan here needs more.
const PASSES_MAX: usize = 100;
/// No life here takes more steps and moments.
const LIFE_MAX: usize = 2_000;
/// Records of each slot; a new replica takes one in each moment.
pub(super) const RECORDS: i64 = 2;
/// Ids whose Secrets are looked for.
const ASKED: u32 = 40;

/// Everything that steps change.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) cluster: ClusterBuilder,
    pub(super) log_id: Option<LogId>,
    pub(super) finalizer: bool,
    /// Whether the `KvCluster` is gone: it was deleted and has no finalizer left.
    pub(super) gone: bool,
    pub(super) world: World,
    /// Steps that were executed.
    pub(super) done: Vec<Step>,
    /// What each replica has applied.
    pub(super) applied: BTreeMap<(NodeId, usize), i64>,
    pub(super) leaders: Vec<Option<NodeId>>,
    /// Nodes whose process does not run.
    pub(super) failed: BTreeSet<NodeId>,
}

impl Model {
    pub(super) fn new(cluster: ClusterBuilder) -> Self {
        let postgres = PostgresView {
            admin: SecretText::new(ADMIN),
            schemas: BTreeMap::new(),
            roles: BTreeMap::new(),
            logins: BTreeMap::new(),
        };
        let world = World {
            now: now(),
            kafka: Ok(KafkaView {
                brokers: 3,
                ..KafkaView::default()
            }),
            postgres: BTreeMap::from([("main".to_owned(), Ok(postgres))]),
            secrets: Ok(BTreeMap::new()),
            asked: (0..ASKED).map(NodeId).collect(),
            objects: Some(Ok(ObjectsView::default())),
            nodes: BTreeMap::new(),
            troubled_since: BTreeMap::new(),
            topics_absent_passes: 0,
            failure: None,
        };
        Self {
            cluster,
            log_id: None,
            finalizer: false,
            gone: false,
            world,
            done: Vec::new(),
            applied: BTreeMap::new(),
            leaders: Vec::new(),
            failed: BTreeSet::new(),
        }
    }

    /// A world in which everything is as wanted.
    pub(super) fn converged(cluster: ClusterBuilder) -> Self {
        let mut model = Self::new(cluster);
        model.run();
        model.done.clear();
        model
    }

    pub(super) fn target(&self) -> Target {
        self.cluster
            .clone()
            .log_id(self.log_id)
            .finalizer(self.finalizer)
            .target()
    }

    pub(super) fn plan(&self) -> Plan {
        self.plan_of(IMAGE)
    }

    /// The plan of an operator that comes with another image.
    pub(super) fn plan_of(&self, image: &str) -> Plan {
        plan(&self.target(), &self.world, image)
    }

    /// Executes first steps until there is none.
    pub(super) fn run(&mut self) {
        for _ in 0..PASSES_MAX {
            if !self.pass() {
                return;
            }
        }
        panic!("the plan does not become empty: {:?}", self.kinds());
    }

    /// Executes whole plans until there is nothing in them, and gives the last one: quicker, where no step has an effect on another one of the same plan.
    pub(super) fn run_all(&mut self) -> Plan {
        for _ in 0..PASSES_MAX {
            let plan = self.plan();
            if plan.steps.is_empty() {
                return plan;
            }
            for step in &plan.steps {
                self.execute(step);
            }
        }
        panic!("the plan does not become empty: {:?}", self.plan().steps);
    }

    /// Executes steps and lets nodes do their work until there is nothing of either; says whether there was a step.
    pub(super) fn live(&mut self) -> bool {
        let before = self.done.len();
        for _ in 0..LIFE_MAX {
            if !self.pass() && !self.tick() {
                return self.done.len() > before;
            }
        }
        panic!("it does not come to rest: {:?}", self.kinds());
    }

    /// The answer to a step was lost: it is taken again.
    pub(super) fn repeat(&mut self, step: &Step) {
        self.execute(step);
    }

    /// One pass; says whether there was a step.
    pub(super) fn pass(&mut self) -> bool {
        if self.gone {
            return false;
        }
        let Some(step) = self.plan().steps.into_iter().next() else {
            return false;
        };
        self.execute(&step);
        self.done.push(step);
        true
    }

    /// The operator is killed: what it kept in memory is lost.
    pub(super) fn restart_operator(&mut self) {
        self.world.topics_absent_passes = 0;
        self.world.failure = None;
    }

    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.done.iter().map(Step::kind).collect()
    }

    pub(super) fn verdict(&self, kind: &str) -> (Truth, &'static str) {
        let plan = self.plan();
        let verdict = plan.conditions.iter().find(|verdict| verdict.kind == kind);
        let verdict = verdict.unwrap_or_else(|| panic!("no condition {kind}"));
        assert!(!verdict.message.is_empty());
        (verdict.truth, verdict.reason)
    }

    pub(super) fn kafka(&mut self) -> &mut KafkaView {
        self.world.kafka.as_mut().expect("the model's Kafka is up")
    }

    pub(super) fn postgres(&mut self) -> &mut PostgresView {
        let view = self
            .world
            .postgres
            .get_mut("main")
            .expect("the model's instance");
        view.as_mut().expect("the model's PostgreSQL is up")
    }

    pub(super) fn objects(&mut self) -> &mut ObjectsView {
        let objects = self.world.objects.as_mut().expect("the model has objects");
        objects.as_mut().expect("the model's API server is up")
    }

    pub(super) fn secrets(&mut self) -> &mut BTreeMap<NodeId, NodeSecret> {
        self.world
            .secrets
            .as_mut()
            .expect("the model's Secrets can be read")
    }

    pub(super) fn status(&mut self, node: u32) -> &mut NodeStatus {
        let status = self.world.nodes.get_mut(&NodeId(node)).expect("a node");
        status.as_mut().expect("a node that reports")
    }

    pub(super) fn execute(&mut self, step: &Step) {
        if matches!(step, Step::DeleteTopics(_)) {
            self.world.topics_absent_passes = 0;
        }
        match step {
            Step::AddFinalizer => self.finalizer = true,
            Step::RemoveFinalizer { .. } => {
                self.finalizer = false;
                self.gone = self.target().deleting_since.is_some();
            }
            Step::PinLogId { log_id } => self.log_id = Some(log_id.unwrap_or(LOG_ID)),
            Step::CreateTopic(topic) => {
                let made = || topic_view(topic);
                self.kafka()
                    .topics
                    .entry(topic.name.clone())
                    .or_insert_with(made);
            }
            Step::RepairTopic {
                topic, settings, ..
            } => {
                let topic = self.kafka().topics.get_mut(topic).expect("a topic");
                topic.own_settings.clone_from(settings);
                topic.settings.clone_from(settings);
            }
            Step::WriteSecret {
                node,
                instance,
                admin,
                role,
                password,
            } => {
                let password = password
                    .clone()
                    .unwrap_or_else(|| SecretText::new("random"));
                let url = secret_text::node_url(admin, role, &password).expect("a URL");
                let secret = NodeSecret {
                    instance: instance.clone(),
                    url,
                    uid: format!("secret of {node}"),
                };
                self.secrets().insert(*node, secret);
                self.postgres().logins.insert(*node, Login::Refused);
            }
            Step::EnsureRole(step) => self.ensure_role(step),
            Step::Publish(assignment, _) => self.publish(assignment),
            Step::TrimAssignments { first } => {
                let counted = &mut self.kafka().assignment.counted;
                assert!(counted.iter().any(|(offset, _)| offset == first));
                counted.retain(|(offset, _)| offset >= first);
            }
            Step::Apply(object) => self.apply(object),
            Step::RestartPod { node, uid, .. } => {
                let pod = self.objects().pods.get_mut(node).expect("a pod");
                assert_eq!(&pod.uid, uid);
                pod.terminating = true;
                pod.ready = false;
                self.world.nodes.insert(*node, Err(NodeTrouble::NoAnswer));
            }
            Step::DeleteStatefulSet { name, uid } => {
                let Some(set) = self.objects().stateful_sets.remove(name) else {
                    return;
                };
                assert_eq!(set.metadata.uid.as_ref(), Some(uid));
                let node = node_of_set(&set).expect("a node's label");
                self.objects().pods.remove(&node);
                self.objects().housed.remove(&node);
                self.world.nodes.insert(node, Err(NodeTrouble::NoPod));
            }
            Step::ForceDeletePod { node, uid, .. } => {
                let pod = self.objects().pods.remove(node).expect("a pod");
                assert_eq!(&pod.uid, uid);
                self.start_pod(*node);
            }
            Step::DeleteSecret { node, uid, .. } => {
                if let Some(secret) = self.secrets().remove(node) {
                    assert_eq!(secret.uid, *uid);
                }
            }
            Step::DeleteTopics(topics) => {
                let proof = self.target().names.assignment_topic();
                self.kafka().topics.retain(|name, _| !topics.contains(name));
                if topics.contains(&proof) {
                    self.kafka().assignment = AssignmentView::default();
                }
            }
            Step::NoteTopicsAbsent => self.world.topics_absent_passes += 1,
            Step::DropRole(step) => {
                self.postgres().schemas.remove(&step.role);
                self.postgres().roles.remove(&step.role);
            }
        }
    }

    fn ensure_role(&mut self, step: &crate::plan::RoleStep) {
        let node = step
            .comment
            .rsplit(':')
            .next()
            .and_then(|id| id.parse().ok())
            .map(NodeId);
        let (role, schema) = role_and_schema(&step.role, &step.comment);
        let view = self.postgres();
        view.roles.insert(step.role.clone(), role);
        view.schemas.insert(step.role.clone(), schema);
        view.logins
            .insert(node.expect("a node in the comment"), Login::Works);
    }

    fn publish(&mut self, assignment: &Assignment) {
        // As the topic's readers do: what does not build on the newest one counts nowhere.
        let view = &mut self.kafka().assignment;
        if assignment.based_on == view.newest.as_ref().map(|(offset, _)| *offset) {
            let offset = view
                .newest
                .as_ref()
                .map_or(Offset(0), |(offset, _)| offset.next());
            view.counted.push((offset, assignment.version));
            view.newest = Some((offset, assignment.clone()));
        }
        if assignment.version == 1 {
            self.populate(assignment);
        }
        for topic in self.kafka().topics.values_mut() {
            topic.never_used = false;
        }
    }

    fn apply(&mut self, object: &Object) {
        match object {
            Object::Service(service) => {
                self.objects()
                    .services
                    .insert(service.name_any(), Service::clone(service));
            }
            Object::Budget(budget) => {
                self.objects()
                    .budgets
                    .insert(budget.name_any(), PodDisruptionBudget::clone(budget));
            }
            Object::StatefulSet(set) => {
                let mut set = StatefulSet::clone(set);
                let created = now() - SignedDuration::from_mins(5);
                set.metadata.uid = Some(format!("uid of {}", set.name_any()));
                set.metadata.creation_timestamp = Some(Time(created));
                let hash = set
                    .annotations()
                    .get(super::super::ANNOTATION_APPLIED)
                    .cloned();
                set.status = Some(StatefulSetStatus {
                    update_revision: hash,
                    ..StatefulSetStatus::default()
                });
                let label = set.labels().get(kvcluster_crds::names::LABEL_NODE).cloned();
                let node = NodeId(
                    label
                        .and_then(|id| id.parse().ok())
                        .expect("a node's label"),
                );
                self.objects().stateful_sets.insert(set.name_any(), set);
                if !self.objects().pods.contains_key(&node) {
                    self.start_pod(node);
                }
            }
        }
    }

    /// The kubelet starts a pod from the current template; the node reports and takes its leaderships.
    pub(super) fn start_pod(&mut self, node: NodeId) {
        let target = self.target();
        let set = &self.objects().stateful_sets[&target.names.stateful_set(node)];
        let revision = set
            .status
            .as_ref()
            .and_then(|status| status.update_revision.clone());
        let pod = PodView {
            name: target.names.pod(node),
            uid: format!(
                "pod of {node} from {}",
                revision.clone().unwrap_or_default()
            ),
            ip: Some("10.0.0.1".to_owned()),
            created: Some(now() - SignedDuration::from_mins(4)),
            ready: true,
            revision,
            ..PodView::default()
        };
        self.objects().pods.insert(node, pod);
        self.objects().housed.insert(node);
        let status = self.fresh_status(&target, node);
        self.world.nodes.insert(node, Ok(status));
    }

    /// The newest assignment.
    pub(super) fn newest(&self) -> &Assignment {
        let view = self.world.kafka.as_ref().expect("the model's Kafka is up");
        let newest = view.assignment.newest.as_ref();
        &newest.expect("one is published").1
    }

    /// The replicas of the first assignment have everything.
    fn populate(&mut self, assignment: &Assignment) {
        self.leaders.clear();
        for (slot, entry) in assignment.slots.iter().enumerate() {
            self.leaders.push(Some(entry.preferred_leader));
            for &voter in &entry.voters {
                self.applied.insert((voter, slot), RECORDS);
            }
        }
    }
}
