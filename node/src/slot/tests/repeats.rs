//! Requests that come again: at the same leader, at the next one, while their record is on its way, and too late.

use super::*;
use crate::effect::{Idempotency, fingerprint};
use crate::slot::dedup::WINDOW_MS;
use crate::slot::leading::JOINED_MAX;

const WALL_MS: u64 = 1_700_000_000_000;

fn put(value: &str) -> Vec<Effect> {
    vec![Effect::Put {
        key: Bytes::from_static(b"k"),
        value: Bytes::copy_from_slice(value.as_bytes()),
    }]
}

fn named(key: &str, effects: &[Effect]) -> Idempotency {
    Idempotency {
        key: Bytes::copy_from_slice(key.as_bytes()),
        fingerprint: fingerprint(effects),
    }
}

/// What an answer to a write is, however it was given.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Now(i64),
    Before(i64),
    Reused,
    Refused(SlotError),
}

impl Bench {
    /// A write of `value` with an idempotency key, at a time of the wall clock.
    fn send(&mut self, key: &str, value: &str, wall_ms: u64) -> RequestId {
        self.last_id += 1;
        let (id, effects) = (self.last_id, put(value));
        self.step(Input::Write(WriteRequest {
            id,
            idempotency: Some(named(key, &effects)),
            effects,
            wall_ms,
            deadline_ns: self.now + 5_000 * MS,
        }));
        id
    }

    fn told(&self, id: RequestId) -> Option<Told> {
        let before = self.repeats.iter().find(|(answered, _, _)| *answered == id);
        let now = self.write_answer(id).map(|answer| match answer {
            Ok(offset) => Told::Now(offset.0),
            Err(error) => Told::Refused(error.clone()),
        });
        now.or(before.map(|(_, (version, is_same), _)| {
            if *is_same {
                Told::Before(version.0)
            } else {
                Told::Reused
            }
        }))
    }

    fn permit(&self, id: RequestId) -> ReadPermit {
        let repeat = self.repeats.iter().find(|(answered, _, _)| *answered == id);
        repeat
            .map(|(_, _, permit)| permit.clone())
            .expect("a repeat")
    }

    fn times(&self) -> Vec<u64> {
        let bodies = self.log.iter().map(Record::decode);
        let time = |body| match body {
            Body::Command { time_ms, .. } => Some(time_ms),
            _ => None,
        };
        bodies
            .filter_map(|record| time(record.expect("decodes").body))
            .collect()
    }

    /// A machine of another node that has read this one's log, and leads.
    fn successor(&self) -> Self {
        let mut next = Self::at(SlotPosition::start());
        next.machine.settings.node = NodeId(1);
        next.machine.settings.incarnation = Incarnation(101);
        next.log.clone_from(&self.log);
        next.take_over();
        next
    }

    /// Reads its whole log, and claims.
    fn take_over(&mut self) {
        for offset in 0..self.log.len() {
            self.consume(Offset(offset as i64));
        }
        self.step(Input::CaughtUp);
        self.hints(|hints| {
            hints.preferred = Some(NodeId(1));
            hints.peers.clear();
        });
        self.wait(u64::from(LEASE_MS) * MS);
        assert_eq!(self.kinds_sent(), ["claim"]);
        self.deliver();
        assert_eq!(self.machine.view().role, SlotRole::Leader);
    }
}

#[test]
fn a_request_that_comes_again_gets_its_first_answer_and_no_record() {
    let mut bench = Bench::leader();
    let first = bench.send("r", "1", WALL_MS);
    bench.deliver();
    let other = bench.send("s", "1", WALL_MS);
    bench.deliver();
    let again = bench.send("r", "1", WALL_MS + 1);
    let reused = bench.send("r", "2", WALL_MS + 1);
    assert_eq!(bench.told(first), Some(Told::Now(1)));
    assert_eq!(bench.told(other), Some(Told::Now(2)));
    assert_eq!(bench.told(again), Some(Told::Before(1)));
    assert_eq!(bench.told(reused), Some(Told::Reused));
    assert!(bench.sent.is_empty() && bench.applied.len() == 3);
    let entry = bench.applied[1].dedup.clone().expect("remembered");
    assert_eq!(
        (entry.key.as_ref(), entry.version),
        (b"r".as_slice(), Offset(1))
    );
    assert_eq!(
        (entry.fingerprint, entry.time_ms),
        (fingerprint(&put("1")), WALL_MS)
    );
}

#[test]
fn an_answer_without_a_record_is_checked_like_a_read() {
    let mut bench = Bench::leader();
    bench.send("r", "1", WALL_MS);
    bench.deliver();
    let by_lease = bench.send("r", "1", WALL_MS);
    let permit = bench.permit(by_lease);
    assert!(permit.confirm(bench.now + 539 * MS) && !permit.confirm(bench.now + 540 * MS));
    bench.wait(u64::from(LEASE_MS) * MS);
    assert_eq!(bench.kinds_sent(), ["renew"], "ahead, since somebody reads");
    bench.deliver();
    bench.wait(u64::from(LEASE_MS) * MS);
    let by_record = bench.send("r", "1", WALL_MS);
    let reused = bench.send("r", "2", WALL_MS);
    assert_eq!(
        (bench.told(by_record), bench.kinds_sent()),
        (None, vec!["renew"])
    );
    bench.deliver();
    assert_eq!(bench.told(by_record), Some(Told::Before(1)));
    assert_eq!(bench.told(reused), None, "it came after the renew was sent");
    bench.deliver();
    assert_eq!(bench.told(reused), Some(Told::Reused));
    let other = bench.append(claim(2, 1, Some(4)));
    bench.consume(other);
    assert!(
        !bench.permit(by_record).confirm(bench.now),
        "the epoch is over"
    );
    let late = bench.send("r", "1", WALL_MS);
    assert_eq!(
        bench.told(late),
        Some(Told::Refused(SlotError::NotLeader { slot: SLOT }))
    );
}

#[test]
fn without_trust_in_clocks_a_repeat_waits_for_a_record() {
    let mut bench = Bench::leader();
    bench.machine.settings.reads_by_lease = false;
    bench.send("r", "1", WALL_MS);
    let joined = bench.send("r", "1", WALL_MS);
    bench.deliver();
    assert_eq!(
        (bench.told(joined), bench.kinds_sent()),
        (None, vec!["renew"])
    );
    bench.deliver();
    assert_eq!(bench.told(joined), Some(Told::Before(1)));
}

#[test]
fn a_repeat_waits_for_the_fate_of_the_record_on_its_way() {
    let mut bench = Bench::leader();
    let first = bench.send("r", "1", WALL_MS);
    let staged = bench.send("s", "1", WALL_MS);
    let joined =
        [("r", "1"), ("r", "2"), ("s", "1")].map(|(key, value)| bench.send(key, value, WALL_MS));
    assert_eq!(bench.sent.len(), 1);
    assert!(joined.iter().all(|id| bench.told(*id).is_none()));
    bench.deliver();
    assert_eq!(bench.told(first), Some(Told::Now(1)));
    assert_eq!(bench.told(joined[0]), Some(Told::Before(1)));
    assert_eq!(bench.told(joined[1]), Some(Told::Reused));
    assert_eq!(
        bench.told(joined[2]),
        None,
        "its record is only now on its way"
    );
    bench.deliver();
    assert_eq!(bench.told(staged), Some(Told::Now(2)));
    assert_eq!(bench.told(joined[2]), Some(Told::Before(2)));
    assert_eq!(bench.log.len(), 3);
}

#[test]
fn a_repeat_of_a_record_that_is_lost_may_be_sent_again() {
    let mut bench = Bench::leader();
    let sent = bench.send("r", "1", WALL_MS);
    let staged = bench.send("s", "1", WALL_MS);
    let joined =
        [("r", "1"), ("r", "2"), ("s", "1")].map(|(key, value)| bench.send(key, value, WALL_MS));
    let other = bench.append(claim(2, 1, Some(0)));
    bench.consume(other);
    let lost = Some(Told::Refused(SlotError::Lost { slot: SLOT }));
    let not_leader = Some(Told::Refused(SlotError::NotLeader { slot: SLOT }));
    for (id, expected) in [
        (sent, &lost),
        (joined[0], &lost),
        (joined[1], &lost),
        (staged, &not_leader),
        (joined[2], &not_leader),
    ] {
        assert_eq!(&bench.told(id), expected);
    }
}

#[test]
fn a_repeat_of_a_record_of_unknown_fate_is_unknown_until_that_is_decided() {
    let mut bench = Bench::leader();
    let sent = bench.send("r", "1", WALL_MS);
    let (same, other) = (bench.send("r", "1", WALL_MS), bench.send("r", "2", WALL_MS));
    let (token, bytes) = bench.sent.pop().expect("sent");
    bench.step(Input::DeliveryUnknown { token });
    assert_eq!((bench.told(sent), bench.told(same)), (None, None));
    bench.wait(5_000 * MS);
    let unknown = Some(Told::Refused(SlotError::Unknown { slot: SLOT }));
    assert_eq!(
        (bench.told(sent), bench.told(same)),
        (unknown.clone(), unknown)
    );
    let nothing = Some(Told::Refused(SlotError::LogUnavailable { slot: SLOT }));
    assert_eq!(
        bench.told(other),
        nothing,
        "whatever became of it, it was another request"
    );
    // It was there after all, so the claim that the node has sent meanwhile is void; it claims again, and leads.
    let offset = bench.append(bytes);
    bench.consume(offset);
    bench.deliver();
    bench.wait(u64::from(LEASE_MS) * MS);
    bench.deliver();
    let again = bench.send("r", "1", WALL_MS);
    assert_eq!(
        bench.kinds_sent(),
        ["renew"],
        "its lease runs from the first claim"
    );
    bench.deliver();
    assert_eq!(bench.told(again), Some(Told::Before(offset.0)));
}

#[test]
fn the_next_leader_knows_what_its_predecessor_wrote() {
    let mut bench = Bench::leader();
    bench.send("r", "1", WALL_MS);
    let (token, bytes) = bench.sent.pop().expect("sent");
    bench.step(Input::DeliveryUnknown { token });
    // There, and the old leader does not know.
    let there = bench.append(bytes.clone());
    let mut next = bench.successor();
    let again = next.send("r", "1", WALL_MS + 5);
    assert_eq!(next.told(again), Some(Told::Before(there.0)));
    let reused = next.send("r", "2", WALL_MS + 5);
    assert_eq!(next.told(reused), Some(Told::Reused));
    assert!(next.sent.is_empty());

    // Not there: it takes effect now, and never again, also when it arrives after all.
    bench.log.pop();
    let mut next = bench.successor();
    let again = next.send("r", "1", WALL_MS + 5);
    next.deliver();
    assert_eq!(next.told(again), Some(Told::Now(2)));
    let late = next.append(bytes);
    next.consume(late);
    assert!(
        next.applied
            .last()
            .is_some_and(|applied| applied.effects.is_empty() && applied.dedup.is_none())
    );
    let once_more = next.send("r", "1", WALL_MS + 5);
    assert_eq!(next.told(once_more), Some(Told::Before(2)));
}

#[test]
fn a_replica_that_comes_back_knows_what_was_stored() {
    let mut bench = Bench::leader();
    bench.send("r", "1", WALL_MS);
    bench.deliver();
    let stored = bench.applied.last().expect("applied").clone();
    let mut back = Bench::at(stored.position.clone());
    let loaded = Loaded {
        position: stored.position,
        dedup: stored.dedup.into_iter().collect(),
    };
    back.machine = SlotMachine::new(bench.machine.settings.clone(), loaded, START);
    back.machine.settings.node = NodeId(1);
    back.machine.settings.incarnation = Incarnation(101);
    back.log.clone_from(&bench.log);
    back.take_over();
    let again = back.send("r", "1", WALL_MS);
    assert_eq!(back.told(again), Some(Told::Before(1)));
}

#[test]
fn a_records_time_never_goes_back_and_only_it_ages() {
    let mut bench = Bench::leader();
    bench.send("r", "1", WALL_MS);
    bench.deliver();
    // A clock that is behind, and one that has gone on: nobody has written since.
    let again = bench.send("r", "1", WALL_MS + 10 * WINDOW_MS);
    assert_eq!(bench.told(again), Some(Told::Before(1)));
    bench.send("s", "1", WALL_MS - 7);
    bench.deliver();
    bench.send("t", "1", WALL_MS + WINDOW_MS - 1);
    bench.send("u", "1", WALL_MS + WINDOW_MS - 3);
    bench.deliver();
    bench.deliver();
    let last = WALL_MS + WINDOW_MS - 1;
    assert_eq!(bench.times(), [WALL_MS, WALL_MS, last, last]);
    let again = bench.send("r", "1", last);
    assert_eq!(bench.told(again), Some(Told::Before(1)));
    bench.send("v", "1", last + 1);
    bench.deliver();
    let forgotten = bench.send("r", "1", last + 1);
    bench.deliver();
    assert_eq!(
        bench.told(forgotten),
        Some(Told::Now(6)),
        "after ten minutes it is a new request"
    );
    let entry = bench
        .applied
        .last()
        .and_then(|applied| applied.dedup.clone());
    assert_eq!(entry.map(|entry| entry.version), Some(Offset(6)));
}

#[test]
fn too_many_keys_are_refused_and_none_is_forgotten_early() {
    let mut bench = Bench::leader();
    for number in 0..DEDUP_MAX - 2 {
        bench.send(&number.to_string(), "1", WALL_MS);
        bench.deliver();
    }
    let (sent, staged) = (bench.send("a", "1", WALL_MS), bench.send("b", "1", WALL_MS));
    let refused = bench.send("c", "1", WALL_MS);
    assert!(matches!(
        bench.told(refused),
        Some(Told::Refused(SlotError::Overloaded { .. }))
    ));
    let known = bench.send("0", "1", WALL_MS);
    assert_eq!(bench.told(known), Some(Told::Before(1)));
    let without = bench.write();
    bench.deliver();
    bench.deliver();
    assert!(
        [sent, staged, without]
            .iter()
            .all(|id| matches!(bench.told(*id), Some(Told::Now(_))))
    );
    let refused = bench.send("c", "1", WALL_MS + WINDOW_MS - 1);
    assert!(matches!(
        bench.told(refused),
        Some(Told::Refused(SlotError::Overloaded { .. }))
    ));
    // Nobody writes, so nothing is forgotten yet; this write's own record makes room for it.
    let taken = bench.send("c", "1", WALL_MS + WINDOW_MS);
    bench.deliver();
    assert!(matches!(bench.told(taken), Some(Told::Now(_))));
}

#[test]
fn a_record_that_somebody_still_wants_is_not_dropped() {
    let mut bench = Bench::leader();
    bench.send("sent", "1", WALL_MS);
    let first = bench.send("r", "1", WALL_MS);
    bench.now += 1_000 * MS;
    let (other, second) = (bench.send("r", "2", WALL_MS), bench.send("r", "1", WALL_MS));
    let gone = bench.send("sent", "1", WALL_MS);
    bench.now += 4_000 * MS;
    bench.step(Input::Tick);
    let late = Some(Told::Refused(SlotError::LogUnavailable { slot: SLOT }));
    assert_eq!(
        (bench.told(first), bench.told(second)),
        (late.clone(), None)
    );
    bench.deliver();
    bench.deliver();
    assert_eq!(
        bench.told(second),
        Some(Told::Now(2)),
        "it is its record now"
    );
    assert_eq!(
        (bench.told(other), bench.told(gone)),
        (Some(Told::Reused), Some(Told::Before(1)))
    );
    // Who wants something else keeps no record, and does not get one either.
    bench.send("wait", "1", WALL_MS);
    let first = bench.send("x", "1", WALL_MS);
    bench.now += 1_000 * MS;
    let other = bench.send("x", "2", WALL_MS);
    bench.wait(4_000 * MS);
    assert_eq!((bench.told(first), bench.told(other)), (late.clone(), late));
    bench.deliver();
    assert!(bench.sent.is_empty());
    let again = bench.send("x", "2", WALL_MS);
    bench.deliver();
    assert_eq!(bench.told(again), Some(Told::Now(4)));
}

#[test]
fn so_many_wait_for_one_record_and_no_more() {
    let mut bench = Bench::leader();
    bench.send("r", "1", WALL_MS);
    let joined: Vec<_> = (0..JOINED_MAX)
        .map(|_| bench.send("r", "1", WALL_MS))
        .collect();
    let refused = bench.send("r", "1", WALL_MS);
    assert!(matches!(
        bench.told(refused),
        Some(Told::Refused(SlotError::Overloaded { .. }))
    ));
    bench.deliver();
    assert!(
        joined
            .iter()
            .all(|id| bench.told(*id) == Some(Told::Before(1)))
    );
}
