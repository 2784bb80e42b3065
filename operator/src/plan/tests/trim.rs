//! The assignment topic stays short, and nobody misses what was removed.

use kvcluster_crds::{Assignment, AssignmentLog, NodeId, Offset};

use super::model::Model;
use crate::fixtures::cluster;
use crate::observe::NodeTrouble;
use crate::plan::Step;

/// A cluster in whose topic so many assignments counted; every other record there did not.
fn moved_often(assignments: u64) -> Model {
    let mut model = Model::converged(cluster());
    let mut newest = model.newest().clone();
    newest.version = assignments;
    let offset = |version: u64| Offset(2 * i64::try_from(version).expect("few"));
    let view = &mut model.kafka().assignment;
    view.counted = (1..=assignments)
        .map(|version| (offset(version), version))
        .collect();
    view.newest = Some((offset(assignments), newest));
    while model.tick() {}
    model
}

fn trimmed(model: &Model) -> Option<Offset> {
    let steps = model.plan().steps;
    let mut trims = steps.iter().filter_map(|step| match step {
        Step::TrimAssignments { first } => Some(*first),
        _ => None,
    });
    trims.next()
}

#[test]
fn old_assignments_go_when_there_are_many_and_some_stay() {
    assert_eq!(trimmed(&moved_often(63)), None);
    let mut model = moved_often(64);
    model.run();
    assert_eq!(model.kinds(), ["TrimAssignments"], "once");
    let left = &model.kafka().assignment.counted;
    let versions: Vec<u64> = left.iter().map(|(_, version)| *version).collect();
    assert_eq!(versions, (49..=64).collect::<Vec<u64>>());
    assert!(model.plan().is_ready());
}

#[test]
fn what_a_node_still_has_to_read_stays() {
    let mut model = moved_often(100);
    model.status(1).assignment_version = Some(70);
    let first = trimmed(&model).expect("what all have read goes");
    let counted = &model.kafka().assignment.counted;
    let place = counted.iter().position(|(offset, _)| *offset == first);
    assert_eq!(place.map(|place| counted[place].1), Some(55));
    // One that is about to begin begins where it can.
    model.status(1).assignment_version = None;
    assert_eq!(trimmed(&model), None);
    // One that does not answer is not waited for.
    model
        .world
        .nodes
        .insert(NodeId(1), Err(NodeTrouble::NoAnswer));
    assert!(trimmed(&model).is_some());
}

#[test]
fn a_reader_that_begins_at_the_cut_refuses_what_everybody_refuses() {
    let mut model = moved_often(64);
    let first = trimmed(&model).expect("it is long");
    let newest = model.newest().clone();
    let of = |version: u64, based_on: Option<Offset>| Assignment {
        version,
        based_on,
        ..newest.clone()
    };
    let counted = model.kafka().assignment.counted.clone();
    // Each assignment, and directly behind it the record of a zombie that built on the one before.
    let pairs = counted
        .iter()
        .zip([None].into_iter().chain(counted.iter().map(Some)));
    let records: Vec<_> = pairs
        .flat_map(|(&(offset, version), before)| {
            let based_on = before.map(|(offset, _)| *offset);
            let record = of(version, based_on).encode();
            [
                (offset, record.clone(), true),
                (offset.next(), record, false),
            ]
        })
        .collect();
    let read = |from: Offset| {
        let mut log = AssignmentLog::default();
        for (offset, record, counts) in records.iter().filter(|(offset, ..)| *offset >= from) {
            let answer = log.observe(&newest.cluster_uid, *offset, record);
            assert_eq!(answer, Ok(*counts), "offset {offset}");
        }
        log.newest().cloned()
    };
    assert_eq!(read(first), read(Offset(0)));
    // Cut in any other place, a reader would take the zombie's record for one that counts.
    let mut astray = AssignmentLog::default();
    let (offset, record, _) = records
        .iter()
        .find(|(offset, ..)| *offset > first)
        .expect("more");
    assert_eq!(
        astray.observe(&newest.cluster_uid, *offset, record),
        Ok(true)
    );
}
