//! Follows the assignment topic: folds it from its beginning and publishes the newest valid assignment.
//!
//! Published only at the end of the topic, so that a node that starts does not act on the past.

use std::sync::Arc;

use kvcluster_crds::{Assignment, AssignmentLog, LogId, Offset};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::log::LogError;
use crate::log::reader::{self, Seen, StartAt};
use crate::log::settings;
use crate::seeded::{self, Bug};

/// What a node must know of itself to follow assignments.
#[derive(Clone, Debug)]
pub struct Following {
    /// Kafka's bootstrap servers.
    pub bootstrap: String,
    /// Name of the client.
    pub client_id: String,
    /// The assignment topic.
    pub topic: String,
    /// What an assignment has to fit.
    pub cluster: Cluster,
}

/// What an assignment has to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// UID of the cluster.
    pub uid: String,
    /// Its log.
    pub log_id: LogId,
    /// Its number of slots.
    pub slots: u32,
}

/// What is known of the assignment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The newest; none before one was read.
    pub assignment: Option<Arc<Assignment>>,
    /// Why there is no newer one, in words; none when all is well.
    pub problem: Option<String>,
}

/// Folds what a reader sees. Pure.
#[derive(Clone, Debug)]
pub struct Folding {
    cluster: Cluster,
    log: AssignmentLog,
    known: Known,
}

/// Starts to follow. `alive` is dropped when that ends.
pub fn start(
    following: Following,
    alive: Box<dyn Send>,
) -> Result<watch::Receiver<Known>, LogError> {
    let (sender, receiver) = watch::channel(Known::default());
    let Following {
        bootstrap,
        client_id,
        topic,
        cluster,
    } = following;
    let settings = settings::consumer(&bootstrap, &client_id);
    let mut folding = Folding::new(cluster);
    let see = move |seen| {
        folding.see(seen);
        sender.send_if_modified(|known| {
            let news = *known != folding.known;
            if news {
                known.clone_from(&folding.known);
            }
            news
        });
        !sender.is_closed()
    };
    reader::start(
        "assignment-reader",
        settings,
        topic,
        StartAt::Beginning,
        alive,
        see,
    )?;
    Ok(receiver)
}

impl Folding {
    /// Nothing is known yet.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            log: AssignmentLog::default(),
            known: Known::default(),
        }
    }

    /// What is known now.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Takes what the reader sees next.
    pub fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Begin => self.log = AssignmentLog::default(),
            Seen::Record(offset, bytes) => self.record(offset, &bytes),
            Seen::Failed(reason) => self.known.problem = Some(reason),
            Seen::End => self.publish(),
        }
    }

    fn record(&mut self, offset: Offset, bytes: &[u8]) {
        if seeded::on(Bug::AssignmentWithoutFence) {
            // The first record counts whatever it builds on; so each is made one.
            self.log = AssignmentLog::default();
        }
        match self.log.observe(&self.cluster.uid, offset, bytes) {
            Ok(true) => {}
            Ok(false) => info!(%offset, "an assignment that does not count was passed over"),
            Err(error) => {
                warn!(%offset, %error, "a record of the assignment topic is no assignment");
            }
        }
    }

    fn publish(&mut self) {
        let Some((_, newest)) = self.log.newest() else {
            self.known.problem = Some("the operator has published no assignment yet".to_owned());
            return;
        };
        let known = self
            .known
            .assignment
            .as_ref()
            .map_or(0, |assignment| assignment.version);
        if newest.version < known {
            let version = newest.version;
            self.known.problem = Some(format!(
                "assignment {version} is older than {known}, which is followed"
            ));
            return;
        }
        self.known.problem = self.misfit(newest);
        if self.known.problem.is_none() && newest.version > known {
            info!(version = newest.version, "a new assignment");
            self.known.assignment = Some(Arc::new(newest.clone()));
        }
    }

    /// Why an assignment of this cluster cannot be followed by this process.
    fn misfit(&self, assignment: &Assignment) -> Option<String> {
        let Cluster { log_id, slots, .. } = &self.cluster;
        if assignment.log_id != *log_id {
            let other = assignment.log_id;
            return Some(format!(
                "the assignment is for log {other}, this node follows {log_id}"
            ));
        }
        if assignment.slots.len() != *slots as usize {
            let other = assignment.slots.len();
            return Some(format!(
                "the assignment has {other} slots, this node was told {slots}"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::{NodeEntry, NodeId, SlotAssignment};

    use super::*;

    fn assignment(version: u64, based_on: Option<i64>) -> Assignment {
        Assignment {
            version,
            based_on: based_on.map(Offset),
            cluster_uid: "uid".to_owned(),
            log_id: LogId(7),
            log_version: 1,
            next_node: NodeId(0),
            slots: vec![SlotAssignment {
                voters: vec![NodeId(0)],
                learners: vec![],
                preferred_leader: NodeId(0),
            }],
            nodes: vec![NodeEntry {
                id: NodeId(0),
                address: "node-0:8080".to_owned(),
                postgres_instance: "main".to_owned(),
                leaving: false,
            }],
        }
    }

    fn folding() -> Folding {
        Folding::new(Cluster {
            uid: "uid".to_owned(),
            log_id: LogId(7),
            slots: 1,
        })
    }

    fn record(offset: i64, assignment: &Assignment) -> Seen {
        Seen::Record(Offset(offset), assignment.encode().into())
    }

    fn version(folding: &Folding) -> Option<u64> {
        folding
            .known
            .assignment
            .as_ref()
            .map(|assignment| assignment.version)
    }

    #[test]
    fn the_past_is_not_published() {
        let mut folding = folding();
        folding.see(Seen::Begin);
        folding.see(record(0, &assignment(1, None)));
        folding.see(record(1, &assignment(2, Some(0))));
        assert_eq!(version(&folding), None);
        folding.see(Seen::End);
        assert_eq!(version(&folding), Some(2));
        assert_eq!(folding.known.problem, None);
    }

    #[test]
    fn what_keeps_an_assignment_away_is_named() {
        let mut folding = folding();
        folding.see(Seen::Failed("no such topic".to_owned()));
        assert_eq!(folding.known.problem.as_deref(), Some("no such topic"));
        folding.see(Seen::Begin);
        folding.see(Seen::End);
        assert!(
            folding
                .known
                .problem
                .as_deref()
                .is_some_and(|text| text.contains("operator"))
        );
        let mut other = assignment(1, None);
        other.log_id = LogId(8);
        folding.see(record(0, &other));
        folding.see(Seen::End);
        assert!(
            folding
                .known
                .problem
                .as_deref()
                .is_some_and(|text| text.contains("log"))
        );
        assert_eq!(version(&folding), None);
    }

    #[test]
    fn reading_anew_keeps_what_is_followed() {
        let mut folding = folding();
        folding.see(record(0, &assignment(1, None)));
        folding.see(record(1, &assignment(2, Some(0))));
        folding.see(Seen::End);
        folding.see(Seen::Failed("gone".to_owned()));
        folding.see(Seen::Begin);
        folding.see(record(0, &assignment(1, None)));
        folding.see(Seen::End);
        assert_eq!(version(&folding), Some(2), "an older one is not taken");
        assert!(folding.known.problem.is_some());
        folding.see(record(1, &assignment(2, Some(0))));
        folding.see(Seen::End);
        assert_eq!(
            (version(&folding), folding.known.problem.clone()),
            (Some(2), None)
        );
    }
}
