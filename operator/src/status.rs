//! From a plan to the status that is written: conditions keep the time of their last change, and nothing else in a status
//! moves by itself, so that it is written only when something changed.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kvcluster_crds::v1alpha1::{KvClusterStatus, MoveStatus, RebalanceStatus, condition};

use crate::cluster::Target;
use crate::plan::{Move, Plan, Step, Verdict};

/// Steps that a status shows at most.
const STEPS_SHOWN_MAX: usize = 20;
/// Moves that a status shows at most.
const MOVES_SHOWN_MAX: usize = 20;
/// Older figures of moves are taken anew.
const FIGURES_AGE_MAX: SignedDuration = SignedDuration::from_secs(10);
/// Longest message, bytes; the API server refuses more than 32,768.
const MESSAGE_BYTES_MAX: usize = 2_048;

/// The status for `target` after `plan`.
pub fn status(target: &Target, plan: &Plan, now: Timestamp) -> KvClusterStatus {
    let before = &target.status;
    let selector = target.names.selector();
    let selector: Vec<String> = selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let steps = plan.steps.iter().chain(&plan.withheld);
    let lines = steps.map(Step::to_string).chain(plan.later.iter().cloned());
    KvClusterStatus {
        observed_generation: Some(target.generation),
        conditions: conditions(before, &plan.conditions, target.generation, now),
        nodes: Some(count(plan.nodes)),
        ready_nodes: Some(count(plan.ready_nodes)),
        selector: Some(selector.join(",")),
        moves: Some(count(plan.moves.len())),
        log_id: before.log_id.clone(),
        assignment_version: plan
            .assignment_version
            .and_then(|version| i64::try_from(version).ok())
            .or(before.assignment_version),
        rebalance: rebalance(before.rebalance.as_ref(), &plan.moves, now),
        plan: lines.take(STEPS_SHOWN_MAX).collect(),
    }
}

/// What is shown of the moves. The numbers change with every record, so they are taken anew only when a move enters another phase or
/// when they are old: a status is not written in each pass.
fn rebalance(
    before: Option<&RebalanceStatus>,
    moves: &[Move],
    now: Timestamp,
) -> Option<RebalanceStatus> {
    if moves.is_empty() {
        return None;
    }
    let shown: Vec<MoveStatus> = moves.iter().take(MOVES_SHOWN_MAX).map(shown).collect();
    let place = |step: &MoveStatus| (step.slot, step.from, step.to, step.phase.clone());
    let fresh = before.filter(|before| {
        let age = now.duration_since(before.observed_at.0);
        let same = before.moves.iter().map(place).eq(shown.iter().map(place));
        same && (age < FIGURES_AGE_MAX || before.moves == shown)
    });
    Some(fresh.cloned().unwrap_or(RebalanceStatus {
        observed_at: Time(now),
        moves: shown,
    }))
}

fn shown(step: &Move) -> MoveStatus {
    let node = |node: kvcluster_crds::NodeId| i32::try_from(node.get()).unwrap_or(i32::MAX);
    MoveStatus {
        slot: count(step.slot),
        from: step.from.map(node),
        to: step.to.map(node),
        phase: step.phase.text().to_owned(),
        records_left: step.records_left,
        bytes_left: step
            .bytes_left
            .map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn conditions(
    before: &KvClusterStatus,
    verdicts: &[Verdict],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let merged = verdicts.iter().map(|verdict| {
        let old = before
            .conditions
            .iter()
            .find(|old| old.type_ == verdict.kind);
        let unchanged = old.filter(|old| old.status == verdict.truth.text());
        Condition {
            type_: verdict.kind.to_owned(),
            status: verdict.truth.text().to_owned(),
            reason: verdict.reason.to_owned(),
            message: cut(&verdict.message, MESSAGE_BYTES_MAX),
            observed_generation: Some(generation),
            last_transition_time: unchanged
                .map_or_else(|| Time(now), |old| old.last_transition_time.clone()),
        }
    });
    merged.collect()
}

/// The beginning of `text`, at most `bytes_max` bytes.
pub fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// `Ready` as (status, reason), before or after.
pub fn readiness(status: &KvClusterStatus) -> Option<(&str, &str, &str)> {
    let ready = status
        .conditions
        .iter()
        .find(|c| c.type_ == condition::READY)?;
    Some((
        ready.status.as_str(),
        ready.reason.as_str(),
        ready.message.as_str(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Phase, Truth};

    fn verdict(truth: Truth, reason: &'static str) -> Verdict {
        let kind = condition::READY;
        Verdict {
            kind,
            truth,
            reason,
            message: "because".to_owned(),
        }
    }

    #[test]
    fn the_time_of_a_condition_moves_with_its_truth_alone() {
        let (early, late): (Timestamp, Timestamp) = (
            "2026-01-01T00:00:00Z".parse().unwrap(),
            "2026-01-02T00:00:00Z".parse().unwrap(),
        );
        let mut status = KvClusterStatus::default();
        status.conditions = conditions(&status, &[verdict(Truth::False, "A")], 1, early);
        let same = conditions(&status, &[verdict(Truth::False, "B")], 2, late);
        assert_eq!(same[0].last_transition_time, Time(early));
        assert_eq!(
            (same[0].reason.as_str(), same[0].observed_generation),
            ("B", Some(2))
        );
        let other = conditions(&status, &[verdict(Truth::True, "B")], 2, late);
        assert_eq!(other[0].last_transition_time, Time(late));
    }

    #[test]
    fn figures_of_moves_are_taken_anew_when_a_phase_changes_or_when_they_are_old() {
        let step = |phase, records| Move {
            slot: 3,
            from: None,
            to: Some(kvcluster_crds::NodeId(4)),
            phase,
            records_left: Some(records),
            bytes_left: None,
        };
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |seconds| begin + SignedDuration::from_secs(seconds);
        let left =
            |status: &Option<RebalanceStatus>| status.as_ref().unwrap().moves[0].records_left;
        let first = rebalance(None, &[step(Phase::CatchingUp, 90)], begin);
        let soon = rebalance(first.as_ref(), &[step(Phase::CatchingUp, 50)], after(9));
        assert_eq!(soon, first, "not written in each pass");
        let later = rebalance(first.as_ref(), &[step(Phase::CatchingUp, 50)], after(10));
        assert_eq!(left(&later), Some(50));
        let still = rebalance(first.as_ref(), &[step(Phase::CatchingUp, 90)], after(60));
        assert_eq!(still, first, "nothing new");
        let other = rebalance(first.as_ref(), &[step(Phase::HandingOver, 0)], after(1));
        assert_eq!(left(&other), Some(0));
        assert_eq!(rebalance(first.as_ref(), &[], after(1)), None);
    }

    #[test]
    fn text_is_cut_between_letters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
    }
}
