//! Each guard of the protocol is taken away, and the exploration must find a counterexample.

use kvcluster_node::seeded::{self, Bug};
use stateright::Checker;

use super::{
    Exploration, HAND_OVER, HAND_OVER_READS, MISHAPS, READS_BY_LEASE, READS_BY_RECORD, RENEWED,
    RESTARTS, RETRIES, SAFE, TWO_ELECTIONS, assignments, storage,
};

const CAUGHT_BY: [(Bug, Exploration); seeded::ALL.len() + seeded::RETRIES.len()] = [
    (Bug::EpochUnchecked, READS_BY_LEASE),
    (Bug::SequenceUnchecked, MISHAPS),
    (Bug::BaseUnchecked, RENEWED),
    (Bug::ContiguityUnchecked, READS_BY_LEASE),
    (Bug::ReadWithoutLease, READS_BY_LEASE),
    (Bug::LeaseUnconfirmed, HAND_OVER_READS),
    (Bug::TenureUnconfirmed, HAND_OVER_READS),
    (Bug::RecordServesLaterReads, READS_BY_RECORD),
    (Bug::UnknownTakenAsNone, MISHAPS),
    (Bug::ReadBackTakenAsFinal, MISHAPS),
    (Bug::OwnLease, RESTARTS),
    (Bug::ClaimBeforeLeaseEnds, READS_BY_LEASE),
    (Bug::LeaseWithoutMargin, READS_BY_LEASE),
    (Bug::LeaseFromReading, TWO_ELECTIONS),
    (Bug::ServesWhileReleasing, HAND_OVER),
    (Bug::DedupForgotten, RETRIES),
];

/// One test for all: the switch is the whole process's.
#[test]
fn seeded_bugs_have_counterexamples() {
    let mut missed = Vec::new();
    for (bug, exploration) in CAUGHT_BY {
        seeded::set(Some(bug));
        let explored = exploration.explore();
        match explored.discovery(SAFE) {
            Some(path) => {
                let wrong = path.last_state().wrong.clone().unwrap_or_default();
                let steps = path.into_actions();
                println!("{bug:?}: {wrong}, after {} steps: {steps:?}", steps.len());
            }
            None => missed.push(bug),
        }
    }
    for bug in seeded::STORAGE {
        seeded::set(Some(bug));
        match storage::explore().discovery(SAFE) {
            Some(path) => {
                let wrong = path.last_state().wrong.clone().unwrap_or_default();
                let steps = path.into_actions();
                println!("{bug:?}: {wrong}, after {} steps: {steps:?}", steps.len());
            }
            None => missed.push(bug),
        }
    }
    for bug in seeded::ASSIGNMENTS {
        seeded::set(Some(bug));
        match assignments::explore().discovery(assignments::ONE_TABLE) {
            Some(path) => {
                let wrong = path.last_state().wrong.clone().unwrap_or_default();
                let steps = path.into_actions();
                println!("{bug:?}: {wrong}, after {} steps: {steps:?}", steps.len());
            }
            None => missed.push(bug),
        }
    }
    seeded::set(None);
    let caught: Vec<Bug> = CAUGHT_BY.iter().map(|(bug, _)| *bug).collect();
    let all: Vec<Bug> = seeded::ALL.into_iter().chain(seeded::RETRIES).collect();
    assert_eq!(caught, all, "every bug has its exploration");
    assert_eq!(missed, [], "not caught");
}
