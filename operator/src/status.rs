//! From a plan to the status that is written: conditions keep the time of their last change, and nothing else in a status
//! moves by itself, so that it is written only when something changed. Figures of moves are rounded: while one goes on, they are
//! written a handful of times.

use std::iter;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kvcluster_crds::v1alpha1::{KvClusterStatus, MoveStatus, RebalanceStatus, condition};

use crate::cluster::Target;
use crate::plan::{Move, Plan, Step, Verdict};

/// Lines of the plan that a status shows at most.
const LINES_SHOWN_MAX: usize = 20;
/// Moves that a status shows at most.
const MOVES_SHOWN_MAX: usize = 20;
/// Older figures of moves are taken anew.
const FIGURES_AGE_MAX: SignedDuration = SignedDuration::from_secs(10);
/// Bytes are shown in so many parts of the slot's size (or of the next power of two).
const PARTS: u64 = 8;
/// Least size for that: below a mebibyte a figure says nothing.
const SIZE_MIN: u64 = PARTS * 1_048_576;
/// Records are rounded up to this, or ten times as many, and so on.
const RECORDS_MIN: i64 = 1_000;
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
    let rebalance = rebalance(before.rebalance.as_ref(), &plan.moves, now);
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
        plan: lines(plan, rebalance.as_ref()),
        rebalance,
    }
}

/// The plan in words, with the figures that the status shows.
fn lines(plan: &Plan, rebalance: Option<&RebalanceStatus>) -> Vec<String> {
    let steps = plan.steps.iter().chain(&plan.withheld);
    let mut lines: Vec<String> = steps.map(Step::to_string).collect();
    let replicas = plan.moves.iter().filter(|step| step.to.is_some()).count();
    let figures = rebalance.map_or(&[][..], |rebalance| &rebalance.moves);
    if replicas > 0 {
        let bytes = rebalance.and_then(|rebalance| rebalance.bytes_left);
        let bytes = bytes.filter(|&bytes| bytes > 0);
        let bytes = bytes.map_or_else(String::new, |bytes| format!(", {}", at_most(bytes)));
        lines.push(format!("replicas to move: {replicas}{bytes}"));
    }
    let figures = figures
        .iter()
        .map(progress)
        .chain(iter::repeat(String::new()));
    let moves = plan.moves.iter().zip(figures);
    lines.extend(moves.map(|(step, progress)| format!("{step}{progress}")));
    lines.extend(plan.later.iter().cloned());
    if lines.len() > LINES_SHOWN_MAX {
        let more = lines.len() - LINES_SHOWN_MAX + 1;
        lines.truncate(LINES_SHOWN_MAX - 1);
        lines.push(format!("and {more} more"));
    }
    lines
}

/// How far a move is, in words.
fn progress(step: &MoveStatus) -> String {
    let phase = match step.phase.as_str() {
        "CatchingUp" => ": catching up",
        "HandingOver" => ": handing over",
        _ => "",
    };
    let left = match (step.bytes_left, step.records_left) {
        (Some(bytes), _) if bytes > 0 => format!(", {}", at_most(bytes)),
        (_, Some(records)) if records > 0 => format!(", at most {records} records"),
        _ => String::new(),
    };
    format!("{phase}{left}")
}

fn at_most(bytes: i64) -> String {
    format!("at most {} MiB", bytes / 1_048_576)
}

/// `left` of `total` bytes, rounded up.
fn rounded_bytes(left: u64, total: u64) -> u64 {
    let part = total
        .max(SIZE_MIN)
        .checked_next_power_of_two()
        .unwrap_or(u64::MAX)
        / PARTS;
    left.div_ceil(part).saturating_mul(part)
}

fn rounded_records(left: i64) -> i64 {
    let mut bound = RECORDS_MIN;
    while bound < left {
        bound = bound.saturating_mul(10);
    }
    if left > 0 { bound } else { 0 }
}

/// What is shown of the moves. The numbers change with every record, so they are rounded, and taken anew only when a move enters
/// another phase or when they are old: a status is not written in each pass.
fn rebalance(
    before: Option<&RebalanceStatus>,
    moves: &[Move],
    now: Timestamp,
) -> Option<RebalanceStatus> {
    if moves.is_empty() {
        return None;
    }
    let bytes = moves.iter().filter_map(bytes_left);
    let bytes = bytes.reduce(i64::saturating_add);
    let shown: Vec<MoveStatus> = moves.iter().take(MOVES_SHOWN_MAX).map(shown).collect();
    let place = |step: &MoveStatus| (step.slot, step.from, step.to, step.phase.clone());
    let fresh = before.filter(|before| {
        let age = now.duration_since(before.observed_at.0);
        let same = before.moves.iter().map(place).eq(shown.iter().map(place));
        same && (age < FIGURES_AGE_MAX || (before.bytes_left, &before.moves) == (bytes, &shown))
    });
    Some(fresh.cloned().unwrap_or(RebalanceStatus {
        observed_at: Time(now),
        bytes_left: bytes,
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
        records_left: step.records_left.map(rounded_records),
        bytes_left: bytes_left(step),
    }
}

fn bytes_left(step: &Move) -> Option<i64> {
    let bytes = rounded_bytes(step.bytes_left?, step.bytes_total?);
    Some(i64::try_from(bytes).unwrap_or(i64::MAX))
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

    const MIB: u64 = 1_048_576;

    fn step(slot: usize, phase: Phase, records: i64, bytes: u64) -> Move {
        Move {
            slot,
            from: None,
            to: Some(kvcluster_crds::NodeId(4)),
            phase,
            records_left: Some(records),
            bytes_left: Some(bytes),
            bytes_total: Some(10 * 1024 * MIB),
        }
    }

    fn begin() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn after(seconds: i64) -> Timestamp {
        begin() + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn figures_of_moves_are_taken_anew_when_a_phase_changes_or_when_they_are_old() {
        let left =
            |status: &Option<RebalanceStatus>| status.as_ref().unwrap().moves[0].records_left;
        let behind = |records| [step(3, Phase::CatchingUp, records, 0)];
        let first = rebalance(None, &behind(90_000), begin());
        assert_eq!(left(&first), Some(100_000));
        let soon = rebalance(first.as_ref(), &behind(5_000), after(9));
        assert_eq!(soon, first, "not written in each pass");
        let later = rebalance(first.as_ref(), &behind(5_000), after(10));
        assert_eq!(left(&later), Some(10_000));
        let still = rebalance(first.as_ref(), &behind(80_000), after(60));
        assert_eq!(still, first, "nothing new");
        let other = rebalance(
            first.as_ref(),
            &[step(3, Phase::HandingOver, 0, 0)],
            after(1),
        );
        assert_eq!(left(&other), Some(0));
        assert_eq!(rebalance(first.as_ref(), &[], after(1)), None);
    }

    #[test]
    fn a_move_that_takes_long_is_written_a_handful_of_times() {
        let total = 10 * 1024 * MIB;
        let (mut written, mut status) = (0, None);
        for second in 0..=1_200 {
            // Meanwhile the slot grows.
            let left = total - total * second / 1_200 + second * 1_000;
            let moves = [step(3, Phase::CatchingUp, 1_000_000, left)];
            let at = after(i64::try_from(second).unwrap());
            let next = rebalance(status.as_ref(), &moves, at);
            let shown = next.as_ref().unwrap().moves[0].bytes_left.unwrap();
            assert!(shown >= 0);
            written += u32::from(next != status);
            status = next;
        }
        assert!((4..=8).contains(&written), "{written} times");
    }

    #[test]
    fn figures_are_rounded_up_and_not_by_more_than_an_eighth_of_a_power_of_two() {
        assert_eq!(rounded_bytes(0, 0), 0);
        assert_eq!(rounded_bytes(1, 1), MIB);
        assert_eq!(rounded_bytes(100 * MIB, 100 * MIB), 112 * MIB);
        assert_eq!(rounded_bytes(u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(
            [0, 1, 1_000, 1_001].map(rounded_records),
            [0, 1_000, 1_000, 10_000]
        );
    }

    fn plan_of(moves: Vec<Move>) -> Plan {
        Plan {
            steps: vec![Step::NoteTopicsAbsent],
            withheld: vec![Step::AddFinalizer],
            later: vec!["hand over the leadership of slots 2".to_owned()],
            moves,
            conditions: Vec::new(),
            nodes: 3,
            ready_nodes: 3,
            assignment_version: None,
        }
    }

    #[test]
    fn the_plan_is_told_in_words_with_what_is_left_to_copy() {
        let moves = vec![
            step(0, Phase::HandingOver, 0, 0),
            step(3, Phase::CatchingUp, 7, 300 * MIB),
            step(5, Phase::Waiting, 0, 10 * 1024 * MIB),
        ];
        let target = crate::fixtures::cluster().target();
        let told = status(&target, &plan_of(moves), begin());
        assert_eq!(
            told.plan,
            [
                "verify that the topics are gone",
                "add the finalizer",
                "replicas to move: 3, at most 12288 MiB",
                "add a replica of slot 0 on node 4: handing over",
                "add a replica of slot 3 on node 4: catching up, at most 2048 MiB",
                "add a replica of slot 5 on node 4, at most 10240 MiB",
                "hand over the leadership of slots 2",
            ]
        );
    }

    #[test]
    fn a_long_plan_says_how_much_is_not_shown() {
        let moves: Vec<Move> = (0..300)
            .map(|slot| step(slot, Phase::Waiting, 0, MIB))
            .collect();
        let target = crate::fixtures::cluster().target();
        let told = status(&target, &plan_of(moves), begin());
        assert_eq!(told.plan.len(), LINES_SHOWN_MAX);
        // Two steps, the sum, 300 moves and the hand-over, of which 19 are shown.
        assert_eq!(told.plan.last().unwrap(), "and 285 more");
        let rebalance = told.rebalance.unwrap();
        assert_eq!(rebalance.moves.len(), MOVES_SHOWN_MAX);
        assert_eq!(rebalance.bytes_left, Some(300 * 2048 * 1_048_576));
    }

    #[test]
    fn text_is_cut_between_letters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
    }
}
