//! How far the log of a slot may be trimmed. Pure.
//!
//! A record may go when every replica has what it did *durably*: committed to PostgreSQL so that a crash of PostgreSQL cannot
//! take it back. The record before the first that any replica may still need stays, to be compared on resume. A replica that
//! was not heard of for long stops holding the log back, if others have its part; it is then rebuilt from a snapshot.

use kvcluster_crds::{NodeId, Offset};

use crate::seeded::{self, Bug};

/// What is known of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its node.
    pub node: NodeId,
    /// The PostgreSQL instance of the node.
    pub instance: String,
    /// Its last report. Of a replica that was never heard of: nothing, since one began to listen.
    pub report: Report,
}

/// How far a replica said that it is stored. Neither offset ever goes back in the life of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Committed up to this (next) offset.
    pub flushed: Offset,
    /// Committed up to this (next) offset so that a crash cannot take it back.
    pub durable: Offset,
    /// How old the report is, milliseconds.
    pub age_ms: u64,
}

/// The settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Records that stay beyond what is needed.
    pub records: i64,
    /// A replica that was not heard of for so long does not hold the log back, milliseconds.
    pub lost_after_ms: u64,
}

/// The first offset that must stay; none while nothing may go.
pub fn first_to_keep(replicas: &[Stored], keep: Keep) -> Option<Offset> {
    let (lost, heard): (Vec<_>, Vec<_>) = replicas
        .iter()
        .partition(|stored| stored.report.age_ms >= keep.lost_after_ms);
    if lost.iter().any(|lost| !others_have_it(lost, &heard)) {
        return None;
    }
    let needed = heard
        .iter()
        .map(|stored| stored.report)
        .map(|report| {
            if seeded::on(Bug::TrimsFlushed) {
                report.flushed
            } else {
                report.durable
            }
        })
        .min()?;
    let first = needed.0.saturating_sub(1).saturating_sub(keep.records);
    (first > 0).then_some(Offset(first))
}

/// Whether another replica that is heard of stands in for a lost one: on another PostgreSQL instance, where there is one. One
/// replica alone is no reason to throw the log away.
fn others_have_it(lost: &Stored, heard: &[&Stored]) -> bool {
    let elsewhere = heard.iter().any(|stored| stored.instance != lost.instance);
    let one_instance = heard.iter().all(|stored| stored.instance == lost.instance);
    heard.len() >= 2 && (elsewhere || one_instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep {
        records: 0,
        lost_after_ms: 1_000,
    };

    fn stored(node: u32, instance: &str, durable: i64, age_ms: u64) -> Stored {
        Stored {
            node: NodeId(node),
            instance: instance.to_owned(),
            report: Report {
                flushed: Offset(durable + 50),
                durable: Offset(durable),
                age_ms,
            },
        }
    }

    #[test]
    fn the_slowest_durable_replica_decides_and_the_record_before_it_stays() {
        let replicas = [
            stored(0, "a", 100, 0),
            stored(1, "a", 40, 999),
            stored(2, "a", 70, 0),
        ];
        assert_eq!(first_to_keep(&replicas, KEEP), Some(Offset(39)));
        let keep = |records| Keep { records, ..KEEP };
        assert_eq!(first_to_keep(&replicas, keep(9)), Some(Offset(30)));
        assert_eq!(first_to_keep(&replicas, keep(39)), None);
        assert_eq!(first_to_keep(&replicas, keep(i64::MAX)), None);
    }

    #[test]
    fn a_replica_that_stands_before_everything_holds_all() {
        let replicas = [
            stored(0, "a", 100, 0),
            stored(1, "a", 100, 0),
            stored(2, "a", 0, 0),
        ];
        assert_eq!(first_to_keep(&replicas, KEEP), None);
        assert_eq!(first_to_keep(&[], KEEP), None);
    }

    #[test]
    fn a_lost_replica_stops_holding_when_two_others_have_its_part() {
        let lost = stored(2, "a", 10, 1_000);
        let two = [stored(0, "a", 100, 0), stored(1, "a", 90, 0), lost.clone()];
        assert_eq!(first_to_keep(&two, KEEP), Some(Offset(89)));
        let never = [two[0].clone(), two[1].clone(), stored(2, "a", 0, 1_000)];
        assert_eq!(first_to_keep(&never, KEEP), Some(Offset(89)));
        let one = [stored(0, "a", 100, 0), lost];
        assert_eq!(first_to_keep(&one, KEEP), None);
    }

    #[test]
    fn another_instance_must_have_it_where_there_is_one() {
        let lost = stored(2, "a", 10, 5_000);
        let elsewhere = [stored(0, "a", 100, 0), stored(1, "b", 90, 0), lost.clone()];
        assert_eq!(first_to_keep(&elsewhere, KEEP), Some(Offset(89)));
        let lost_elsewhere = [
            stored(0, "a", 100, 0),
            stored(1, "a", 90, 0),
            stored(2, "b", 5, 5_000),
        ];
        assert_eq!(first_to_keep(&lost_elsewhere, KEEP), Some(Offset(89)));
    }
}
