//! Kafka, PostgreSQL and the nodes in memory. Nodes follow the newest assignment, catch up over several steps, hand leadership
//! over, and keep what they have in their schemas: a restart keeps it, a dropped schema does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kvcluster_crds::names::LABEL_NODE;
use kvcluster_crds::{Assignment, Incarnation, NodeId, NodeStatus, Offset, SlotId};

use super::api::ApiServer;
use super::faults::{Fault, Faults};
use super::kubelet;
use crate::clients::kafka::KafkaTrouble;
use crate::clients::postgres::PostgresTrouble;
use crate::cluster::Target;
use crate::execute::ExecuteError;
use crate::fixtures::{node_status, role_and_schema, slot_status, topic_view};
use crate::observe::{
    AdminUrls, AssignmentView, KafkaView, Login, NodeSecret, NodeTrouble, PodView, PostgresView,
    PostgresViews, TopicView,
};
use crate::outside::{KafkaSeen, Outside, Statuses};
use crate::plan::{RoleStep, Step};
use crate::secret_text::{SecretText, password_of};

/// Records of each slot.
const LOG_END: i64 = 10;

/// See the module; clones are the same.
#[derive(Clone)]
pub(super) struct World {
    state: Arc<Mutex<State>>,
    api: ApiServer,
    faults: Faults,
}

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) topics: BTreeMap<String, TopicView>,
    pub(super) published: Option<(Offset, Assignment)>,
    pub(super) records: i64,
    /// The assignments that counted and are left: offsets and versions.
    pub(super) counted: Vec<(Offset, u64)>,
    /// Roles with their schemas and passwords, by instance and name.
    pub(super) roles: BTreeMap<(String, String), Role>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) leaders: BTreeMap<SlotId, NodeId>,
    pub(super) late: Vec<Step>,
}

#[derive(Clone)]
pub(super) struct Role {
    pub(super) comment: String,
    pub(super) password: Option<SecretText>,
}

/// What a node's process knows, and what its schema holds.
#[derive(Clone, Default)]
pub(super) struct Node {
    pub(super) version: Option<u64>,
    pub(super) incarnation: u64,
    pub(super) pod: Option<String>,
    /// How far each replica is behind.
    pub(super) behind: BTreeMap<SlotId, i64>,
}

impl World {
    pub(super) fn new(api: &ApiServer, faults: &Faults) -> Self {
        Self {
            state: Arc::default(),
            api: api.clone(),
            faults: faults.clone(),
        }
    }

    /// One step of every node; whether something changed.
    pub(super) fn tick(&self) -> bool {
        let pods = self.running();
        let mut state = self.lock();
        let before = state.fingerprint();
        state.follow(&pods);
        state.elect();
        state.fingerprint() != before
    }

    /// Drops a schema with its role, as somebody with SQL does.
    pub(super) fn drop_schema(&self, node: NodeId) {
        let mut state = self.lock();
        let mark = format!(":{node}");
        state.roles.retain(|_, role| !role.comment.ends_with(&mark));
        state.nodes.remove(&node);
    }

    /// How many slots the published table wants this node to lead, and how many it leads.
    pub(super) fn leads(&self, node: NodeId) -> (usize, usize) {
        let state = self.lock();
        let slots = state.published.iter().flat_map(|(_, table)| &table.slots);
        let named = slots.filter(|slot| slot.preferred_leader == node).count();
        let leads = state.leaders.values().filter(|leader| **leader == node);
        (named, leads.count())
    }

    /// The newest assignment.
    pub(super) fn published(&self) -> Option<Assignment> {
        let state = self.lock();
        state.published.as_ref().map(|(_, table)| table.clone())
    }

    /// What must hold at any time: nothing that was ever written is lost.
    pub(super) fn check(&self) -> Result<(), String> {
        let state = self.lock();
        let Some((_, assignment)) = &state.published else {
            return Ok(());
        };
        for slot in (0..assignment.slots.len()).map(slot_id) {
            let mut replicas = state
                .nodes
                .values()
                .filter_map(|node| node.behind.get(&slot));
            let known = state
                .nodes
                .values()
                .any(|node| node.behind.contains_key(&slot));
            if known && !replicas.any(|behind| *behind == 0) {
                return Err(format!("nobody has all of slot {slot} any more"));
            }
        }
        Ok(())
    }

    /// Everything, in words, without what differs from run to run.
    pub(super) fn everything(&self) -> Vec<String> {
        let state = self.lock();
        let mut words: Vec<String> = state
            .topics
            .iter()
            .map(|(name, topic)| format!("topic {name}: {topic:?}"))
            .collect();
        words.extend(state.roles.iter().map(|((instance, name), role)| {
            format!("role {name} on {instance}: {}", role.comment)
        }));
        if let Some((_, assignment)) = &state.published {
            words.push(format!("nodes {:?}", assignment.nodes));
            words.push(format!("slots {:?}", assignment.slots));
            words.push(format!("next {}", assignment.next_node()));
        }
        if state.counted.last().map(|(offset, _)| offset)
            != state.published.as_ref().map(|(o, _)| o)
        {
            words.push("the newest assignment was removed".to_owned());
        }
        words.extend(state.nodes.iter().map(|(node, of)| {
            let slots: BTreeSet<SlotId> = of.behind.keys().copied().collect();
            format!("node {node} has {slots:?}")
        }));
        words
    }

    /// What was held back arrives. Nobody hears the answer.
    pub(super) fn deliver_late(&self) {
        let mut state = self.lock();
        for step in std::mem::take(&mut state.late) {
            let _ = state.execute(&step);
        }
    }

    /// Another world like this one, for another operator.
    pub(super) fn fork(&self, api: &ApiServer, faults: &Faults) -> Self {
        Self {
            state: Arc::new(Mutex::new(self.lock().clone())),
            api: api.clone(),
            faults: faults.clone(),
        }
    }

    fn running(&self) -> BTreeMap<NodeId, String> {
        let pods: Vec<Pod> = self.api.all("pods");
        let running = pods.iter().filter(|pod| kubelet::runs(pod));
        let of = |pod: &Pod| {
            let node = pod.labels().get(LABEL_NODE)?.parse().ok()?;
            Some((NodeId(node), pod.uid()?))
        };
        running.filter_map(of).collect()
    }

    fn kafka_view(&self, target: &Target) -> KafkaView {
        let state = self.lock();
        let published = state.published.as_ref();
        let (ours, others) = match published {
            Some((_, table)) if table.cluster_uid == target.uid => (published, None),
            _ => (None, published),
        };
        KafkaView {
            brokers: 3,
            topics: state.topics.clone(),
            assignment: AssignmentView {
                newest: ours.cloned(),
                counted: state.counted.clone(),
                stranger: others.map(|(_, table)| table.cluster_uid.clone()),
                ..AssignmentView::default()
            },
        }
    }

    fn views(
        &self,
        target: &Target,
        urls: AdminUrls,
        secrets: &BTreeMap<NodeId, NodeSecret>,
    ) -> PostgresViews {
        let state = self.lock();
        let postgres = urls.into_iter().map(|(instance, url)| {
            let view = url.map(|admin| state.postgres(target, &instance, admin, secrets));
            (instance, view)
        });
        postgres.collect()
    }

    fn status(&self, target: &Target, node: NodeId) -> Result<NodeStatus, NodeTrouble> {
        let pods = self.running();
        let pod = pods.get(&node).ok_or(NodeTrouble::NoPod)?;
        let state = self.lock();
        let of = state.nodes.get(&node).ok_or(NodeTrouble::NoAnswer)?;
        if of.pod.as_ref() != Some(pod) {
            return Err(NodeTrouble::NoAnswer);
        }
        let (_, newest) = state.published.as_ref().ok_or(NodeTrouble::NoAnswer)?;
        let slots = of.behind.iter().map(|(slot, behind)| {
            let leader = state.leaders.get(slot).copied();
            slot_status(node, slot.index(), leader, LOG_END - behind, *behind == 0)
        });
        Ok(NodeStatus {
            incarnation: Incarnation(of.incarnation),
            ..node_status(node, &target.uid, newest.log_id, of.version, slots)
        })
    }

    async fn change(&self, step: &Step) -> Option<Result<(), ExecuteError>> {
        let is_ours = matches!(
            step,
            Step::CreateTopic(_)
                | Step::RepairTopic { .. }
                | Step::DeleteTopics(_)
                | Step::EnsureRole(_)
                | Step::DropRole(_)
                | Step::Publish(..)
                | Step::TrimAssignments { .. }
        );
        if !is_ours {
            return None;
        }
        let fault = self.faults.around(step.to_string());
        let mut done = Ok(());
        if fault.is_none_or(Fault::takes_effect) {
            done = self.lock().execute(step);
        } else if fault == Some(Fault::Late) {
            self.lock().late.push(step.clone());
        }
        match fault {
            Some(Fault::KilledBefore | Fault::KilledAfter | Fault::Late) => self.faults.die().await,
            Some(Fault::Refused | Fault::Conflict | Fault::AnswerLost) => Some(Err(trouble(step))),
            None => Some(done),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trouble(step: &Step) -> ExecuteError {
    match step {
        Step::EnsureRole(_) | Step::DropRole(_) => PostgresTrouble::Unreachable {
            place: "db:5432".to_owned(),
            text: "the connection was lost".to_owned(),
        }
        .into(),
        _ => KafkaTrouble::Unreachable {
            bootstrap: "kafka:9092".to_owned(),
            hint: "",
        }
        .into(),
    }
}

pub(super) fn slot_id(number: usize) -> SlotId {
    SlotId(u32::try_from(number).expect("few"))
}

impl State {
    fn execute(&mut self, step: &Step) -> Result<(), ExecuteError> {
        match step {
            Step::CreateTopic(topic) => {
                let made = || topic_view(topic);
                self.topics.entry(topic.name.clone()).or_insert_with(made);
            }
            Step::RepairTopic {
                topic, settings, ..
            } => {
                if let Some(topic) = self.topics.get_mut(topic) {
                    topic.own_settings.clone_from(settings);
                    topic.settings.clone_from(settings);
                }
            }
            Step::DeleteTopics(topics) => {
                self.topics.retain(|name, _| !topics.contains(name));
                if topics.iter().any(|name| name.ends_with(".assignment")) {
                    self.published = None;
                    self.counted.clear();
                }
            }
            Step::EnsureRole(role) => self.ensure(role),
            Step::DropRole(role) => {
                let place = (role.instance.clone(), role.role.clone());
                self.roles.remove(&place);
                if let Some(node) = node_of(&role.comment) {
                    self.nodes.remove(&node);
                }
            }
            Step::Publish(assignment, _) => return self.publish(assignment),
            Step::TrimAssignments { first } => {
                assert!(self.counted.iter().any(|(offset, _)| offset == first));
                self.counted.retain(|(offset, _)| offset >= first);
            }
            other => unreachable!("{other} is executed elsewhere"),
        }
        Ok(())
    }

    fn ensure(&mut self, step: &RoleStep) {
        let role = Role {
            comment: step.comment.clone(),
            password: step.password.clone(),
        };
        let place = (step.instance.clone(), step.role.clone());
        self.roles.insert(place, role);
    }

    /// As every reader of the topic decides.
    fn publish(&mut self, assignment: &Assignment) -> Result<(), ExecuteError> {
        let encoded = Assignment::decode(&assignment.encode());
        assert_eq!(encoded.as_ref(), Ok(assignment), "a table that nodes take");
        let offset = Offset(self.records);
        self.records += 1;
        for topic in self.topics.values_mut() {
            topic.never_used = false;
        }
        let newest = self.published.as_ref();
        let follows = assignment.based_on == newest.map(|(offset, _)| *offset)
            && assignment.version == newest.map_or(1, |(_, newest)| newest.version + 1);
        if !follows {
            return Err(ExecuteError::NotFollowed);
        }
        self.counted.push((offset, assignment.version));
        self.published = Some((offset, assignment.clone()));
        Ok(())
    }

    fn postgres(
        &self,
        target: &Target,
        instance: &str,
        admin: SecretText,
        secrets: &BTreeMap<NodeId, NodeSecret>,
    ) -> PostgresView {
        let here = self.roles.iter().filter(|((at, _), _)| at == instance);
        let made = here.map(|((_, name), role)| (name, role_and_schema(name, &role.comment)));
        let (roles, schemas) = made
            .map(|(name, (role, schema))| ((name.clone(), role), (name.clone(), schema)))
            .unzip();
        let with_url = secrets
            .iter()
            .filter(|(_, secret)| secret.instance == instance);
        let logins = with_url.map(|(node, secret)| {
            let place = (instance.to_owned(), target.schema(*node));
            let password = self
                .roles
                .get(&place)
                .and_then(|role| role.password.clone());
            let works = password.is_some() && password == password_of(&secret.url);
            (*node, if works { Login::Works } else { Login::Refused })
        });
        PostgresView {
            admin,
            schemas,
            roles,
            logins: logins.collect(),
        }
    }
}

pub(super) fn node_of(comment: &str) -> Option<NodeId> {
    comment.rsplit(':').next()?.parse().ok().map(NodeId)
}

impl Outside for World {
    fn kafka<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, KafkaSeen> {
        async move { Ok(self.kafka_view(target)) }.boxed()
    }

    fn postgres<'a>(
        &'a self,
        target: &'a Target,
        admin_urls: AdminUrls,
        _nodes: &'a BTreeSet<NodeId>,
        secrets: &'a BTreeMap<NodeId, NodeSecret>,
    ) -> BoxFuture<'a, PostgresViews> {
        async move { self.views(target, admin_urls, secrets) }.boxed()
    }

    fn ask<'a>(
        &'a self,
        target: &'a Target,
        nodes: &'a BTreeSet<NodeId>,
        pods: &'a BTreeMap<NodeId, PodView>,
    ) -> BoxFuture<'a, Statuses> {
        let status = |node: NodeId| match pods.get(&node).and_then(|pod| pod.problem.clone()) {
            Some(problem) => Err(NodeTrouble::PodProblem(problem)),
            None => self.status(target, node),
        };
        async move {
            let statuses = nodes.iter().map(|node| (*node, status(*node)));
            statuses.collect()
        }
        .boxed()
    }

    fn execute<'a>(
        &'a self,
        _target: &'a Target,
        step: &'a Step,
    ) -> BoxFuture<'a, Option<Result<(), ExecuteError>>> {
        self.change(step).boxed()
    }
}
