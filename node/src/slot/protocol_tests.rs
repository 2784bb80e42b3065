use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::effect::Effect;
use crate::log::codec::Record;

const LOG: LogId = LogId(7);

/// A log under judgement.
struct Bench {
    position: SlotPosition,
}

impl Bench {
    fn new() -> Self {
        Self {
            position: SlotPosition::start(),
        }
    }

    fn see(&mut self, body: Body) -> Verdict {
        let entry = Entry::Ours(Record { log_id: LOG, body });
        let offset = self.position.next_offset;
        judge(&mut self.position, LOG, offset, &entry, 0)
    }

    fn claim(&mut self, epoch: u64, node: u32, based_on: Option<i64>) -> Verdict {
        self.see(Body::Claim {
            epoch: Epoch(epoch),
            node: NodeId(node),
            incarnation: Incarnation(u64::from(node)),
            based_on: based_on.map(Offset),
            lease_ms: 600,
        })
    }

    fn command(&mut self, epoch: u64, node: u32, seq: u64) -> Verdict {
        let effects = vec![Effect::Delete {
            key: Bytes::from_static(b"k"),
        }];
        let incarnation = Incarnation(u64::from(node));
        self.see(Body::Command {
            epoch: Epoch(epoch),
            incarnation,
            seq,
            time_ms: seq * 100,
            idempotency: None,
            effects,
        })
    }

    fn renew(&mut self, epoch: u64, node: u32, seq: u64) -> Verdict {
        let incarnation = Incarnation(u64::from(node));
        self.see(Body::Renew {
            epoch: Epoch(epoch),
            incarnation,
            seq,
        })
    }

    fn release(&mut self, epoch: u64, node: u32, seq: u64, to: u32) -> Verdict {
        let incarnation = Incarnation(u64::from(node));
        self.see(Body::Release {
            epoch: Epoch(epoch),
            incarnation,
            seq,
            to: NodeId(to),
        })
    }
}

#[test]
fn the_slots_time_is_the_latest_that_counted() {
    let mut log = Bench::new();
    assert_eq!(log.claim(1, 1, None), Verdict::Valid);
    assert_eq!(log.position.time_ms, 0);
    assert_eq!(log.command(1, 1, 1), Verdict::Valid);
    assert_eq!(log.command(1, 1, 9), ignored(Ignored::Sequence));
    assert_eq!(
        log.position.time_ms, 100,
        "what does not count is not looked at"
    );
    assert_eq!(log.command(1, 1, 2), Verdict::Valid);
    assert_eq!(log.position.time_ms, 200);
    let last = log.position.last_leader_offset;
    assert_eq!(log.claim(2, 2, last.map(|offset| offset.0)), Verdict::Valid);
    assert_eq!(log.command(2, 2, 1), Verdict::Valid);
    assert_eq!(
        log.position.time_ms, 200,
        "a leader's clock that is behind moves nothing back"
    );
}

fn ignored(reason: Ignored) -> Verdict {
    Verdict::Ignored(reason)
}

#[test]
fn a_life_of_a_slot() {
    let mut log = Bench::new();
    assert_eq!(
        log.command(0, 0, 1),
        ignored(Ignored::Author),
        "nobody leads in epoch 0"
    );
    assert_eq!(log.claim(2, 0, None), ignored(Ignored::ClaimEpoch));
    assert_eq!(log.claim(1, 0, None), Verdict::Valid);
    assert_eq!(
        log.claim(1, 1, None),
        ignored(Ignored::ClaimEpoch),
        "the second claim loses"
    );
    assert_eq!(log.command(1, 0, 1), Verdict::Valid);
    assert_eq!(
        log.command(1, 0, 3),
        ignored(Ignored::Sequence),
        "number 2 was lost"
    );
    assert_eq!(
        log.claim(2, 1, Some(2)),
        ignored(Ignored::ClaimBase),
        "2 is the claim, 4 is newer"
    );
    assert_eq!(log.renew(1, 0, 2), Verdict::Valid);
    assert_eq!(log.position.last_leader_offset, Some(Offset(7)));
    assert_eq!(log.claim(2, 1, Some(7)), Verdict::Valid);
    assert_eq!(log.command(1, 0, 3), ignored(Ignored::Author), "a zombie");
    assert_eq!(
        log.command(2, 0, 1),
        ignored(Ignored::Author),
        "the right epoch, the wrong process"
    );
    assert_eq!(log.command(2, 1, 1), Verdict::Valid);
}

#[test]
fn behind_a_release_nothing_of_the_epoch_counts() {
    let mut log = Bench::new();
    assert_eq!(log.claim(1, 0, None), Verdict::Valid);
    assert_eq!(log.release(1, 0, 1, 2), Verdict::Valid);
    assert_eq!(log.command(1, 0, 2), ignored(Ignored::Released));
    assert_eq!(log.release(1, 0, 2, 1), ignored(Ignored::Released));
    assert_eq!(
        log.claim(2, 1, Some(0)),
        ignored(Ignored::ClaimBase),
        "not named, and stale"
    );
    assert_eq!(log.claim(2, 2, Some(0)), Verdict::Valid, "named");
    assert_eq!(log.position.released_to, None);
}

#[test]
fn a_release_that_was_ignored_names_nobody() {
    let mut log = Bench::new();
    assert_eq!(log.claim(1, 0, None), Verdict::Valid);
    assert_eq!(log.release(1, 0, 2, 2), ignored(Ignored::Sequence));
    assert_eq!(log.claim(2, 2, None), ignored(Ignored::ClaimBase));
    assert_eq!(log.claim(2, 1, Some(0)), Verdict::Valid);
}

#[test]
fn foreign_records_and_those_of_another_log_move_only_the_offset() {
    let mut log = Bench::new();
    assert_eq!(log.claim(1, 0, None), Verdict::Valid);
    let before = log.position.clone();
    let verdict = judge(&mut log.position, LOG, Offset(4), &Entry::Foreign, 11);
    assert_eq!(verdict, ignored(Ignored::Foreign));
    let (epoch, incarnation) = (Epoch(1), Incarnation(0));
    let body = Body::Renew {
        epoch,
        incarnation,
        seq: 1,
    };
    let other = Entry::Ours(Record {
        log_id: LogId(8),
        body,
    });
    let verdict = judge(&mut log.position, LOG, Offset(5), &other, 12);
    assert_eq!(verdict, ignored(Ignored::OtherLog));
    let moved = SlotPosition {
        next_offset: Offset(6),
        checksum_before: Some(12),
        ..before
    };
    assert_eq!(log.position, moved);
}

/// Records as three nodes that know little might write them, with small numbers so that they often fit.
fn any_body() -> impl Strategy<Value = Body> {
    let small = || (0..6_u64, 0..3_u32);
    prop_oneof![
        (small(), prop::option::of(0..40_i64)).prop_map(|((epoch, node), based_on)| Body::Claim {
            epoch: Epoch(epoch),
            node: NodeId(node),
            incarnation: Incarnation(u64::from(node)),
            based_on: based_on.map(Offset),
            lease_ms: 600,
        }),
        (small(), 0..5_u64).prop_map(|((epoch, node), seq)| Body::Command {
            epoch: Epoch(epoch),
            incarnation: Incarnation(u64::from(node)),
            seq,
            time_ms: 7,
            idempotency: None,
            effects: vec![],
        }),
        (small(), 0..5_u64, 0..3_u32).prop_map(|((epoch, node), seq, to)| Body::Release {
            epoch: Epoch(epoch),
            incarnation: Incarnation(u64::from(node)),
            seq,
            to: NodeId(to),
        }),
    ]
}

/// What the next writer knows: mostly the truth, so that long valid histories come about.
fn informed(position: &SlotPosition, guess: &Body, truth: u8) -> Body {
    let mut body = guess.clone();
    match &mut body {
        Body::Claim {
            epoch, based_on, ..
        } => {
            if truth & 1 != 0 {
                *epoch = position.epoch.next();
            }
            if truth & 2 != 0 {
                *based_on = position.last_leader_offset;
            }
        }
        Body::Command {
            epoch,
            incarnation,
            seq,
            ..
        }
        | Body::Renew {
            epoch,
            incarnation,
            seq,
        }
        | Body::Release {
            epoch,
            incarnation,
            seq,
            ..
        } => {
            if truth & 1 != 0 {
                *epoch = position.epoch;
                *incarnation = position
                    .leader
                    .map_or(*incarnation, |(_, incarnation)| incarnation);
            }
            if truth & 2 != 0 {
                *seq = position.last_seq + 1;
            }
        }
    }
    body
}

proptest! {
    /// The rules said once more, over the whole history instead of a position.
    #[test]
    fn any_log_is_judged_by_the_rules(
        writes in prop::collection::vec((any_body(), 0..4_u8), 0..120),
        restart_at in 0..120_usize,
    ) {
        let mut position = SlotPosition::start();
        let mut leaders: BTreeMap<u64, (NodeId, Incarnation)> = BTreeMap::new();
        let mut valid: Vec<(i64, Body)> = Vec::new();
        let mut resumed = position.clone();
        for (index, (guess, truth)) in writes.iter().enumerate() {
            let body = informed(&position, guess, *truth);
            let entry = Entry::Ours(Record { log_id: LOG, body: body.clone() });
            let offset = Offset(index as i64);
            let verdict = judge(&mut position, LOG, offset, &entry, index as u64);
            if index < restart_at {
                resumed = position.clone();
            } else {
                // A replica that began at a stored position agrees.
                prop_assert_eq!(judge(&mut resumed, LOG, offset, &entry, index as u64), verdict);
            }
            let last = valid.last().cloned();
            let last_epoch = last.as_ref().map_or(0, |(_, body)| body.author().0.0);
            let (epoch, incarnation) = body.author();
            let expected = match &body {
                Body::Claim { node, based_on, .. } => {
                    let named = matches!(&last, Some((_, Body::Release { to, .. })) if to == node);
                    let base = based_on.map(|base| base.0) == last.as_ref().map(|(at, _)| *at);
                    epoch.0 == last_epoch + 1 && (named || base)
                }
                Body::Command { seq, .. } | Body::Renew { seq, .. } | Body::Release { seq, .. } => {
                    let open = !matches!(last, Some((_, Body::Release { .. })));
                    let of_epoch = valid.iter().filter(|(_, body)| body.author().0 == epoch);
                    let author = leaders.get(&epoch.0).is_some_and(|(_, known)| *known == incarnation);
                    open && epoch.0 == last_epoch && author && *seq == of_epoch.count() as u64
                }
            };
            prop_assert_eq!(verdict == Verdict::Valid, expected, "{:?} at {}", body, index);
            if verdict == Verdict::Valid {
                if let Body::Claim { node, .. } = body {
                    prop_assert!(leaders.insert(epoch.0, (node, incarnation)).is_none(), "two leaders");
                }
                valid.push((offset.0, body));
            }
        }
    }
}
