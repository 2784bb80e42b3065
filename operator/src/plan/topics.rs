//! The topics: make what is missing, set what differs, refuse what cannot be this cluster's.

use super::{Finding, Stage, Step};
use crate::build::topics::{TopicSpec, topics};
use crate::clients::kafka::KafkaTrouble;
use crate::cluster::Target;
use crate::observe::{KafkaView, TopicView, World};
use crate::seeded::{self, Bug};

pub(super) fn stage(target: &Target, world: &World) -> Stage {
    let view = match &world.kafka {
        Ok(view) => view,
        Err(trouble) => return Stage::refuse(reason(trouble), trouble),
    };
    if let Some(finding) = stranger(target, view) {
        return Stage {
            steps: Vec::new(),
            refused: Some(finding),
        };
    }
    if let Some(finding) = lost(target, view) {
        return Stage {
            steps: Vec::new(),
            refused: Some(finding),
        };
    }
    let mut stage = Stage::default();
    for wanted in topics(target) {
        match view.topics.get(&wanted.name) {
            None => match too_few_brokers(&wanted, view.brokers) {
                None => stage.steps.push(Step::CreateTopic(wanted)),
                refused => {
                    stage.refused = refused;
                    return stage;
                }
            },
            Some(topic) => match wrong_shape(&wanted, topic) {
                None => stage.steps.extend(repair(wanted, topic)),
                refused => {
                    stage.refused = refused;
                    return stage;
                }
            },
        }
    }
    stage
}

pub(super) fn reason(trouble: &KafkaTrouble) -> &'static str {
    match trouble {
        KafkaTrouble::Unreachable { .. } => "KafkaUnreachable",
        KafkaTrouble::Settling { .. } => "KafkaSettling",
        KafkaTrouble::Refused { .. } => "KafkaRefused",
        KafkaTrouble::Client { .. } => "KafkaClientInvalid",
    }
}

/// Topics of the same name that another cluster (or an earlier one of the same name) wrote to.
fn stranger(target: &Target, view: &KafkaView) -> Option<Finding> {
    const REASON: &str = "TopicOfAnotherOwner";
    let topic = target.names.assignment_topic();
    if let Some(error) = &view.assignment.unreadable {
        let message = format!("topic {topic} cannot be read: {error}");
        return Some(Finding::new("AssignmentUnreadable", message));
    }
    if view.assignment.newest.is_some() || was_published(target, view) {
        return None;
    }
    if let Some(uid) = &view.assignment.stranger {
        let message = format!(
            "topic {topic} belongs to the KvCluster with UID {uid}; delete the topics {} if its data is not needed, or name \
             this KvCluster differently",
            topics(target)
                .iter()
                .map(|topic| topic.name.clone())
                .collect::<Vec<_>>()
                .join(", ")
        );
        return Some(Finding::new(REASON, message));
    }
    let used = view.topics.iter().find(|(_, topic)| !topic.never_used)?;
    let message = format!(
        "topic {} holds records that this KvCluster did not write; delete the topic if they are not needed, or name this \
         KvCluster differently",
        used.0
    );
    Some(Finding::new(REASON, message))
}

/// Whether this cluster published its nodes and nobody else wrote there since.
fn was_published(target: &Target, view: &KafkaView) -> bool {
    let here = view.assignment.newest.is_some() || target.status.assignment_version.is_some();
    here && view.assignment.stranger.is_none()
}

/// A topic that was written to and is gone is not made anew: an empty log must not be taken for the truth.
fn lost(target: &Target, view: &KafkaView) -> Option<Finding> {
    if !was_published(target, view) || seeded::on(Bug::LostLogMadeAnew) {
        return None;
    }
    let (log, table) = (target.names.log_topic(), target.names.assignment_topic());
    let topic = if !view.topics.contains_key(&log) {
        log
    } else if view.assignment.newest.is_none() {
        table
    } else {
        return None;
    };
    let message = format!(
        "topic {topic} was written to and is gone or empty; it is not made anew, since an empty one says that nothing was ever \
         written: bring it back, or delete this KvCluster with its topics and schemas and make another one"
    );
    Some(Finding::new("TopicLost", message))
}

fn too_few_brokers(wanted: &TopicSpec, brokers: usize) -> Option<Finding> {
    let few = brokers < wanted.replication_factor as usize;
    few.then(|| {
        let message = format!(
            "topics are to have {} replicas and Kafka shows {brokers} brokers; lower spec.kafka.replicationFactor or add brokers",
            wanted.replication_factor
        );
        Finding::new("TooFewBrokers", message)
    })
}

/// A topic whose shape is another one is never changed: it is somebody else's, or the keys would fall into other slots.
fn wrong_shape(wanted: &TopicSpec, topic: &TopicView) -> Option<Finding> {
    if topic.partitions != wanted.partitions {
        let message = format!(
            "topic {} has {} partitions and must have {}; delete it if its data is not needed, or name the KvCluster differently",
            wanted.name, topic.partitions, wanted.partitions
        );
        return Some(Finding::new("TopicHasOtherPartitions", message));
    }
    if topic.replication_factor != wanted.replication_factor {
        let message = format!(
            "topic {} has {} replicas and spec.kafka.replicationFactor is {}; reassign its partitions with Kafka's tools or \
             set the field back",
            wanted.name, topic.replication_factor, wanted.replication_factor
        );
        return Some(Finding::new("TopicHasOtherReplication", message));
    }
    None
}

/// Kafka's call replaces all settings of a topic, so those that others made are sent along.
fn repair(wanted: TopicSpec, topic: &TopicView) -> Option<Step> {
    let differs = |(key, value): &(&String, &String)| topic.settings.get(*key) != Some(*value);
    let differ: Vec<String> = wanted
        .settings
        .iter()
        .filter(differs)
        .map(|(key, _)| key.clone())
        .collect();
    if differ.is_empty() {
        return None;
    }
    let mut settings = topic.own_settings.clone();
    settings.extend(wanted.settings);
    Some(Step::RepairTopic {
        topic: wanted.name,
        settings,
        differ,
    })
}

/// Whether the topics that exist are this cluster's to delete: its assignment says so, or they have the right shape and
/// nobody ever wrote to them.
pub(super) fn own_topics(target: &Target, view: &KafkaView) -> Vec<String> {
    let ours = view.assignment.newest.is_some();
    let own = topics(target).into_iter().filter(|wanted| {
        view.topics
            .get(&wanted.name)
            .is_some_and(|topic| ours || topic.never_used && wrong_shape(wanted, topic).is_none())
    });
    own.map(|topic| topic.name).collect()
}
