//! One machine and a log that the test holds in its hands. Whole clusters are simulated in `tests/simulation`.

use bytes::Bytes;
use kvcluster_crds::{Epoch, Incarnation, LogId, SlotId};

use super::claiming::HAND_OVER_AFTER_NS;
use super::election::{CLAIM_STAGGER_NS, NAMED_AFTER_NS, PeerHint};
use super::leading::{BATCH_RECORDS_MAX, READS_WAITING_MAX, STAGED_RECORDS_MAX, STALLED_AFTER_NS};
use super::lease::MS;
use super::protocol::judge;
use super::*;
use crate::effect::{Applied, Effect};
use crate::log::codec::{Body, Entry, Record, checksum};
use crate::service::ReadPermit;

mod repeats;
mod restored;

const LEASE_MS: u32 = 600;
const DEDUP_MAX: usize = 10;
const LOG: LogId = LogId(7);
const ME: NodeId = NodeId(0);
const MY_PROCESS: Incarnation = Incarnation(100);
const START: u64 = 1_000_000 * MS;

struct Bench {
    machine: SlotMachine,
    now: u64,
    /// The log, as the test wants it to be.
    log: Vec<Bytes>,
    /// Appended by the machine and not yet placed by the test.
    sent: Vec<(Token, Bytes)>,
    writes: Vec<(RequestId, Result<Offset, SlotError>)>,
    reads: Vec<(RequestId, Result<ReadPermit, SlotError>)>,
    /// Offset and sameness of the earlier request, and leave to say so.
    repeats: Vec<(RequestId, (Offset, bool), ReadPermit)>,
    applied: Vec<Applied>,
    place: Option<NodeId>,
    frozen: Option<String>,
    last_id: RequestId,
}

impl Bench {
    fn at(position: SlotPosition) -> Self {
        let settings = Settings {
            slot: SlotId(3),
            node: ME,
            incarnation: MY_PROCESS,
            log_id: LOG,
            lease_ms: LEASE_MS,
            reads_by_lease: true,
            dedup_entries_max: DEDUP_MAX,
            life: 0,
        };
        let dedup = Vec::new();
        let loaded = Loaded { position, dedup };
        Self {
            machine: SlotMachine::new(settings, loaded, START),
            now: START,
            log: Vec::new(),
            sent: Vec::new(),
            writes: Vec::new(),
            reads: Vec::new(),
            repeats: Vec::new(),
            applied: Vec::new(),
            place: None,
            frozen: None,
            last_id: 0,
        }
    }

    /// The leader of epoch 1, whose claim stands at offset 0.
    fn leader() -> Self {
        let mut bench = Self::at(SlotPosition::start());
        bench.hints(|_| {});
        bench.step(Input::CaughtUp);
        bench.deliver();
        assert_eq!(bench.machine.view().role, SlotRole::Leader);
        bench
    }

    fn hints(&mut self, change: impl FnOnce(&mut Hints)) {
        let peer = |node| PeerHint {
            node: NodeId(node),
            incarnation: Some(Incarnation(u64::from(node))),
            alive: true,
            can_lead: true,
            serves: true,
        };
        let mut hints = Hints {
            voters: vec![ME, NodeId(1), NodeId(2)],
            preferred: Some(ME),
            peers: vec![peer(1), peer(2)],
            heartbeats_return: true,
            memory_to_spare: true,
        };
        change(&mut hints);
        self.step(Input::Hints(hints));
    }

    fn step(&mut self, input: Input) {
        for output in self.machine.step(self.now, input) {
            match output {
                Output::Append { token, bytes } => self.sent.push((token, bytes)),
                Output::Apply(applied) => self.applied.push(applied),
                Output::WriteAnswer { id, answer } => self.writes.push((id, answer)),
                Output::ReadAnswer { id, answer } => self.reads.push((id, answer)),
                Output::Repeat {
                    id,
                    version,
                    is_same,
                    permit,
                } => self.repeats.push((id, (version, is_same), permit)),
                Output::Place(place) => self.place = place,
                Output::Frozen(reason) => self.frozen = Some(reason),
            }
        }
    }

    fn wait(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        self.step(Input::Tick);
    }

    fn write(&mut self) -> RequestId {
        self.last_id += 1;
        let id = self.last_id;
        let effects = vec![Effect::Delete {
            key: Bytes::from_static(b"k"),
        }];
        let deadline_ns = self.now + 5_000 * MS;
        self.step(Input::Write(WriteRequest {
            id,
            effects,
            idempotency: None,
            wall_ms: 0,
            deadline_ns,
        }));
        id
    }

    fn read(&mut self) -> RequestId {
        self.last_id += 1;
        let id = self.last_id;
        self.step(Input::Read {
            id,
            deadline_ns: self.now + 5_000 * MS,
        });
        id
    }

    /// The log takes all that was sent and acknowledges it.
    fn deliver(&mut self) {
        for (token, bytes) in std::mem::take(&mut self.sent) {
            let offset = Offset(self.log.len() as i64);
            self.log.push(bytes);
            self.step(Input::Delivered { token, offset });
        }
    }

    /// Somebody else's record stands in the log; the machine has not read it.
    fn append(&mut self, bytes: Bytes) -> Offset {
        self.log.push(bytes);
        Offset(self.log.len() as i64 - 1)
    }

    fn consume(&mut self, offset: Offset) {
        let bytes = self.log[offset.0 as usize].clone();
        self.step(Input::Record { offset, bytes });
    }

    fn kinds_sent(&self) -> Vec<&'static str> {
        let kind = |bytes| match Record::decode(bytes).expect("decodes").body {
            Body::Claim { .. } => "claim",
            Body::Command { .. } => "command",
            Body::Renew { .. } => "renew",
            Body::Release { .. } => "release",
        };
        self.sent.iter().map(|(_, bytes)| kind(bytes)).collect()
    }

    fn write_answer(&self, id: RequestId) -> Option<&Result<Offset, SlotError>> {
        self.writes
            .iter()
            .find(|(answered, _)| *answered == id)
            .map(|(_, answer)| answer)
    }

    fn read_answer(&self, id: RequestId) -> Option<&Result<ReadPermit, SlotError>> {
        self.reads
            .iter()
            .find(|(answered, _)| *answered == id)
            .map(|(_, answer)| answer)
    }
}

fn claim(epoch: u64, node: u32, based_on: Option<i64>) -> Bytes {
    let body = Body::Claim {
        epoch: Epoch(epoch),
        node: NodeId(node),
        incarnation: Incarnation(u64::from(node)),
        based_on: based_on.map(Offset),
        lease_ms: LEASE_MS,
    };
    Record { log_id: LOG, body }.encode()
}

const SLOT: SlotId = SlotId(3);

#[test]
fn a_slot_without_a_leader_is_claimed_by_a_replica_that_is_fit() {
    let mut bench = Bench::at(SlotPosition::start());
    bench.hints(|_| {});
    assert!(bench.sent.is_empty(), "the end of the log is not known");
    bench.hints(|hints| hints.heartbeats_return = false);
    bench.step(Input::CaughtUp);
    bench.hints(|hints| hints.memory_to_spare = false);
    bench.hints(|hints| hints.voters = vec![NodeId(1)]);
    assert!(bench.sent.is_empty(), "cut off, out of memory, no voter");
    bench.hints(|_| {});
    assert_eq!(bench.kinds_sent(), ["claim"]);
    assert_eq!(bench.machine.view().role, SlotRole::Claiming);
    bench.wait(10_000 * MS);
    assert_eq!(bench.sent.len(), 1, "one claim is in flight");
    assert_eq!(bench.place, None);
    bench.deliver();
    assert_eq!(bench.place, Some(ME));
}

#[test]
fn who_lost_the_race_follows_the_winner() {
    let mut bench = Bench::at(SlotPosition::start());
    bench.hints(|_| {});
    bench.step(Input::CaughtUp);
    let other = bench.append(claim(1, 2, None));
    bench.deliver();
    assert_eq!(
        bench.machine.view().role,
        SlotRole::Claiming,
        "the gap is not read yet"
    );
    bench.consume(other);
    assert_eq!(bench.machine.view().role, SlotRole::Follower);
    assert_eq!(bench.place, Some(NodeId(2)));
    assert_eq!(
        bench.machine.view().applied,
        Offset(2),
        "both claims are judged"
    );
}

#[test]
fn writes_that_come_while_a_batch_is_in_flight_are_sent_together() {
    let mut bench = Bench::leader();
    let first = bench.write();
    assert_eq!(bench.sent.len(), 1);
    let rest: Vec<_> = (0..5).map(|_| bench.write()).collect();
    assert_eq!(bench.sent.len(), 1, "held back");
    bench.deliver();
    assert_eq!(bench.write_answer(first), Some(&Ok(Offset(1))));
    assert_eq!(bench.sent.len(), 5);
    bench.deliver();
    for (number, id) in rest.iter().enumerate() {
        assert_eq!(
            bench.write_answer(*id),
            Some(&Ok(Offset(2 + number as i64)))
        );
    }
    let offsets: Vec<_> = bench
        .applied
        .iter()
        .map(|applied| applied.offset.0)
        .collect();
    assert_eq!(
        offsets,
        [0, 1, 2, 3, 4, 5, 6],
        "each applied once, before its answer"
    );
}

#[test]
fn the_consumer_and_acknowledgements_judge_each_offset_once() {
    let mut bench = Bench::leader();
    let id = bench.write();
    let (token, bytes) = bench.sent.pop().expect("sent");
    let offset = bench.append(bytes);
    bench.consume(offset);
    assert_eq!(
        bench.write_answer(id),
        Some(&Ok(offset)),
        "read before it was acknowledged"
    );
    bench.step(Input::Delivered { token, offset });
    bench.consume(Offset(0));
    assert_eq!(bench.applied.len(), 2);
    assert_eq!(bench.writes.len(), 1);
}

#[test]
fn an_acknowledgement_behind_a_gap_waits_until_the_gap_is_read() {
    let mut bench = Bench::leader();
    let id = bench.write();
    let gap = bench.append(Bytes::from_static(b"somebody else's"));
    bench.deliver();
    assert_eq!(bench.write_answer(id), None);
    bench.consume(gap);
    assert_eq!(bench.write_answer(id), Some(&Ok(Offset(2))));
}

#[test]
fn a_write_behind_another_nodes_claim_is_lost() {
    let mut bench = Bench::leader();
    let id = bench.write();
    let staged = bench.write();
    let other = bench.append(claim(2, 1, Some(0)));
    let (token, bytes) = bench.sent.pop().expect("sent");
    let offset = bench.append(bytes);
    bench.step(Input::Delivered { token, offset });
    assert_eq!(bench.write_answer(id), None);
    bench.consume(other);
    assert_eq!(
        bench.write_answer(id),
        Some(&Err(SlotError::Lost { slot: SLOT }))
    );
    assert_eq!(
        bench.write_answer(staged),
        Some(&Err(SlotError::NotLeader { slot: SLOT }))
    );
    assert_eq!(bench.place, Some(NodeId(1)));
    bench.consume(offset);
    assert!(
        bench
            .applied
            .last()
            .is_some_and(|applied| applied.effects.is_empty())
    );
}

#[test]
fn an_unknown_outcome_ends_the_epoch_and_is_decided_by_the_next_claim() {
    let mut bench = Bench::leader();
    let (there, gone) = (bench.write(), bench.write());
    let (token, bytes) = bench.sent.pop().expect("sent");
    bench.step(Input::DeliveryUnknown { token });
    assert_eq!(bench.machine.view().role, SlotRole::SteppedDown);
    assert_eq!(
        bench.write_answer(gone),
        Some(&Err(SlotError::NotLeader { slot: SLOT }))
    );
    let late = bench.write();
    assert_eq!(
        bench.write_answer(late),
        Some(&Err(SlotError::NotLeader { slot: SLOT }))
    );
    assert_eq!(bench.write_answer(there), None, "not decided");
    assert_eq!(bench.place, None);
    // It was there after all.
    let offset = bench.append(bytes);
    bench.consume(offset);
    assert_eq!(bench.write_answer(there), Some(&Ok(offset)));
    assert!(
        bench.sent.is_empty(),
        "nothing is sent in this epoch any more"
    );
}

#[test]
fn who_stepped_down_claims_again_after_its_lease() {
    let mut bench = Bench::leader();
    let id = bench.write();
    let (token, _) = bench.sent.pop().expect("sent");
    bench.step(Input::DeliveryUnknown { token });
    bench.wait(u64::from(LEASE_MS) * MS - 1);
    assert!(bench.sent.is_empty());
    bench.wait(1);
    assert_eq!(bench.kinds_sent(), ["claim"]);
    bench.deliver();
    assert_eq!(bench.machine.view().epoch, Epoch(2));
    assert_eq!(
        bench.write_answer(id),
        Some(&Err(SlotError::Lost { slot: SLOT }))
    );
    assert_eq!(bench.place, Some(ME));
}

#[test]
fn an_own_record_that_the_log_put_out_of_order_ends_the_epoch() {
    let mut bench = Bench::leader();
    bench.write();
    bench.deliver();
    let (first, second) = (bench.write(), bench.write());
    bench.deliver();
    let third = bench.write();
    assert_eq!(bench.sent.len(), 1, "the second is in flight");
    let (_, second_bytes) = bench.sent.pop().expect("sent");
    // A record that was never this machine's next one: numbers 4 before 3.
    let Body::Command {
        epoch,
        incarnation,
        seq,
        time_ms,
        idempotency,
        effects,
    } = Record::decode(&second_bytes).expect("decodes").body
    else {
        panic!("a command");
    };
    let ahead = Body::Command {
        epoch,
        incarnation,
        seq: seq + 1,
        time_ms,
        idempotency,
        effects,
    };
    let offset = bench.append(
        Record {
            log_id: LOG,
            body: ahead,
        }
        .encode(),
    );
    bench.consume(offset);
    assert_eq!(
        bench.machine.view().role,
        SlotRole::Leader,
        "4 was not sent yet"
    );
    assert!(bench.write_answer(first).is_some());
    let offset = bench.append(second_bytes);
    bench.consume(offset);
    assert_eq!(bench.write_answer(second), Some(&Ok(offset)));
    let (_, third_bytes) = bench.sent.pop().expect("sent");
    let skipped = Record {
        log_id: LOG,
        body: renumbered(&third_bytes, 9),
    };
    let offset = bench.append(skipped.encode());
    bench.consume(offset);
    assert_eq!(
        bench.machine.view().role,
        SlotRole::Leader,
        "9 is none of what is in flight"
    );
    assert_eq!(bench.write_answer(third), None);
}

fn renumbered(bytes: &Bytes, number: u64) -> Body {
    let mut body = Record::decode(bytes).expect("decodes").body;
    if let Body::Command { seq, .. } = &mut body {
        *seq = number;
    }
    body
}

#[test]
fn a_record_in_flight_that_is_judged_ignored_ends_the_epoch() {
    let mut bench = Bench::leader();
    bench.write();
    let waits: Vec<_> = (0..2).map(|_| bench.write()).collect();
    bench.deliver();
    assert_eq!(bench.sent.len(), 2);
    // The second of the batch stands before the first, and is acknowledged there.
    let (first, second) = (bench.sent.remove(0), bench.sent.remove(0));
    let offset = bench.append(second.1);
    bench.step(Input::Delivered {
        token: second.0,
        offset,
    });
    assert_eq!(bench.machine.view().role, SlotRole::SteppedDown);
    let offset = bench.append(first.1);
    bench.step(Input::Delivered {
        token: first.0,
        offset,
    });
    assert_eq!(bench.write_answer(waits[0]), Some(&Ok(offset)));
    assert_eq!(
        bench.write_answer(waits[1]),
        None,
        "it might stand there once more"
    );
}

#[test]
fn deadlines_say_whether_the_write_was_sent() {
    let mut bench = Bench::leader();
    let (sent, staged) = (bench.write(), bench.write());
    bench.wait(5_000 * MS);
    assert_eq!(
        bench.write_answer(sent),
        Some(&Err(SlotError::Unknown { slot: SLOT }))
    );
    assert_eq!(
        bench.write_answer(staged),
        Some(&Err(SlotError::LogUnavailable { slot: SLOT }))
    );
    bench.deliver();
    assert_eq!(bench.writes.len(), 2, "answered once");
    assert_eq!(bench.applied.len(), 2, "and applied");
}

#[test]
fn a_log_that_takes_no_records_refuses_new_writes() {
    let mut bench = Bench::leader();
    bench.write();
    bench.wait(STALLED_AFTER_NS + 1);
    let id = bench.write();
    assert_eq!(
        bench.write_answer(id),
        Some(&Err(SlotError::LogUnavailable { slot: SLOT }))
    );
    bench.deliver();
    let id = bench.write();
    assert_eq!(bench.write_answer(id), None);
    assert_eq!(bench.sent.len(), 1);
}

#[test]
fn what_waits_is_limited() {
    let mut bench = Bench::leader();
    bench.write();
    for _ in 0..STAGED_RECORDS_MAX {
        bench.write();
    }
    assert!(bench.writes.is_empty());
    let id = bench.write();
    assert!(matches!(
        bench.write_answer(id),
        Some(Err(SlotError::Overloaded { .. }))
    ));
    bench.deliver();
    assert_eq!(bench.sent.len(), BATCH_RECORDS_MAX);
    bench.wait(u64::from(LEASE_MS) * MS);
    for _ in 0..READS_WAITING_MAX {
        bench.read();
    }
    assert!(bench.reads.is_empty());
    let id = bench.read();
    assert!(matches!(
        bench.read_answer(id),
        Some(Err(SlotError::Overloaded { .. }))
    ));
}

#[test]
fn reads_trust_the_lease_while_it_holds() {
    let mut bench = Bench::leader();
    let id = bench.read();
    let Some(Ok(permit @ ReadPermit::Lease(_))) = bench.read_answer(id).cloned() else {
        panic!("a permit by lease");
    };
    let end = START + 540 * MS;
    assert!(permit.confirm(end - 1) && !permit.confirm(end));
    assert!(bench.sent.is_empty(), "the lease is fresh");
}

#[test]
fn who_leads_is_sure_of_it_while_the_lease_holds() {
    let mut bench = Bench::leader();
    let end = START + 540 * MS;
    let surely = |bench: &Bench, now| bench.machine.surely_leads(now);
    assert!(surely(&bench, end - 1) && !surely(&bench, end));
    bench.now += 100 * MS;
    bench.write();
    bench.deliver();
    assert!(surely(&bench, end + 99 * MS) && !surely(&bench, end + 100 * MS));
    bench.step(Input::Stop);
    assert!(!surely(&bench, bench.now), "it serves no more");
    assert!(!surely(&Bench::at(SlotPosition::start()), START));
}

#[test]
fn one_renew_serves_the_reads_that_came_before_it_was_sent() {
    let mut bench = Bench::leader();
    bench.wait(u64::from(LEASE_MS) * MS);
    let first = bench.read();
    assert_eq!(bench.kinds_sent(), ["renew"]);
    let second = bench.read();
    let sent_at = bench.now;
    bench.wait(100 * MS);
    bench.deliver();
    assert!(matches!(
        bench.read_answer(first),
        Some(Ok(ReadPermit::Record(_)))
    ));
    assert!(
        bench.read_answer(second).is_none(),
        "it came after the renew was sent"
    );
    assert_eq!(
        bench.kinds_sent(),
        ["renew"],
        "the next one is for the second"
    );
    bench.deliver();
    assert!(matches!(
        bench.read_answer(second),
        Some(Ok(ReadPermit::Record(_)))
    ));
    let third = bench.read();
    let Some(Ok(permit)) = bench.read_answer(third) else {
        panic!("a permit")
    };
    assert!(permit.confirm(sent_at + 639 * MS) && !permit.confirm(sent_at + 640 * MS));
}

#[test]
fn a_permit_by_record_ends_with_the_epoch() {
    let mut bench = Bench::leader();
    bench.wait(u64::from(LEASE_MS) * MS);
    let id = bench.read();
    bench.deliver();
    let Some(Ok(permit)) = bench.read_answer(id).cloned() else {
        panic!("a permit");
    };
    assert!(permit.confirm(bench.now));
    let other = bench.append(claim(2, 1, Some(1)));
    bench.consume(other);
    // What the next leader writes is applied here perhaps before that leader knows that it is in the log.
    assert!(!permit.confirm(bench.now));
}

#[test]
fn a_command_proves_leadership_to_reads_as_well() {
    let mut bench = Bench::leader();
    bench.write();
    bench.wait(u64::from(LEASE_MS) * MS);
    let id = bench.read();
    bench.write();
    bench.deliver();
    assert_eq!(bench.kinds_sent(), ["command"], "no renew beside it");
    assert!(bench.read_answer(id).is_none());
    bench.deliver();
    assert!(matches!(
        bench.read_answer(id),
        Some(Ok(ReadPermit::Record(_)))
    ));
}

#[test]
fn the_lease_is_renewed_ahead_only_while_reads_come() {
    let mut bench = Bench::leader();
    bench.wait(500 * MS);
    assert!(bench.sent.is_empty(), "nobody reads");
    bench.read();
    assert_eq!(bench.kinds_sent(), ["renew"]);
    bench.deliver();
    bench.wait(530 * MS);
    assert!(bench.sent.is_empty(), "nobody has read since");
}

#[test]
fn without_trust_in_clocks_every_read_waits_for_a_record() {
    let mut bench = Bench::leader();
    bench.machine.settings.reads_by_lease = false;
    let id = bench.read();
    assert_eq!(bench.kinds_sent(), ["renew"]);
    bench.deliver();
    assert!(matches!(
        bench.read_answer(id),
        Some(Ok(ReadPermit::Record(_)))
    ));
}

#[test]
fn reads_end_with_leadership() {
    let mut bench = Bench::leader();
    let held = bench.read();
    let Some(Ok(permit)) = bench.read_answer(held).cloned() else {
        panic!("a permit")
    };
    bench.write();
    bench.wait(u64::from(LEASE_MS) * MS);
    let waits = bench.read();
    let (token, _) = bench.sent[0].clone();
    bench.step(Input::DeliveryUnknown { token });
    assert_eq!(bench.read_answer(waits).map(Result::is_err), Some(true));
    assert!(
        !permit.confirm(START),
        "also at a time that the lease covered"
    );
    let late = bench.read();
    assert_eq!(bench.read_answer(late).map(Result::is_err), Some(true));
}

#[test]
fn a_stop_releases_to_a_healthy_voter_behind_what_is_staged() {
    let mut bench = Bench::leader();
    bench.hints(|hints| hints.peers[0].can_lead = false);
    let (first, second) = (bench.write(), bench.write());
    bench.step(Input::Stop);
    assert_eq!(bench.place, None, "serves no more");
    let refused = bench.write();
    assert_eq!(
        bench.write_answer(refused),
        Some(&Err(SlotError::NotLeader { slot: SLOT }))
    );
    assert!(!bench.machine.has_stopped());
    bench.deliver();
    assert_eq!(bench.kinds_sent(), ["command", "release"]);
    let release = Record::decode(&bench.sent[1].1).expect("decodes").body;
    assert!(
        matches!(release, Body::Release { to: NodeId(2), .. }),
        "{release:?}"
    );
    bench.deliver();
    assert!(bench.machine.has_stopped());
    for id in [first, second] {
        assert!(matches!(bench.write_answer(id), Some(Ok(_))));
    }
    bench.wait(60_000 * MS);
    assert!(bench.sent.is_empty(), "claims nothing while it stops");
}

#[test]
fn a_stop_without_a_healthy_voter_ends_serving() {
    let mut bench = Bench::leader();
    bench.hints(|hints| hints.peers.clear());
    bench.step(Input::Stop);
    assert!(bench.machine.has_stopped() && bench.sent.is_empty());
    assert_eq!(bench.place, None);
}

#[test]
fn the_preferred_leader_gets_the_slot_when_leadership_has_settled() {
    let mut bench = Bench::leader();
    bench.hints(|hints| hints.preferred = Some(NodeId(2)));
    bench.wait(HAND_OVER_AFTER_NS);
    assert!(bench.sent.is_empty(), "the slot's turn comes later");
    bench.hints(|hints| {
        hints.preferred = Some(NodeId(2));
        hints.peers[1].can_lead = false;
    });
    bench.wait(60_000 * MS);
    assert!(bench.sent.is_empty(), "it could not lead");
    bench.hints(|hints| hints.preferred = Some(NodeId(2)));
    assert_eq!(bench.kinds_sent(), ["release"]);
    bench.deliver();
    // The named node does not come: after a time anybody may, and it is still this node's turn to try.
    bench.hints(|_| {});
    bench.wait(u64::from(LEASE_MS) * MS + NAMED_AFTER_NS);
    assert_eq!(bench.kinds_sent(), ["claim"]);
}

#[test]
fn the_node_that_a_release_names_claims_at_once() {
    let mut bench = Bench::at(SlotPosition::start());
    bench.hints(|_| {});
    let offset = bench.append(claim(1, 1, None));
    bench.consume(offset);
    bench.step(Input::CaughtUp);
    assert!(bench.sent.is_empty());
    let (epoch, incarnation) = (Epoch(1), Incarnation(1));
    let body = Body::Release {
        epoch,
        incarnation,
        seq: 1,
        to: ME,
    };
    let offset = bench.append(Record { log_id: LOG, body }.encode());
    bench.consume(offset);
    assert_eq!(bench.kinds_sent(), ["claim"]);
}

#[test]
fn followers_wait_a_whole_lease_and_their_turn() {
    let mut bench = Bench::at(SlotPosition::start());
    bench.hints(|hints| hints.preferred = Some(NodeId(2)));
    let offset = bench.append(claim(1, 1, None));
    bench.consume(offset);
    bench.step(Input::CaughtUp);
    bench.hints(|hints| {
        hints.preferred = Some(NodeId(2));
        hints.peers[0].alive = false;
    });
    assert_eq!(bench.place, None, "an election is on");
    bench.wait(u64::from(LEASE_MS) * MS);
    assert!(bench.sent.is_empty(), "node 2 is preferred and goes first");
    bench.wait(CLAIM_STAGGER_NS);
    assert_eq!(bench.kinds_sent(), ["claim"]);
}

#[test]
fn a_late_claim_leads_with_a_lease_from_when_it_was_sent() {
    let mut bench = Bench::at(SlotPosition::start());
    bench.hints(|_| {});
    bench.step(Input::CaughtUp);
    let (token, late) = bench.sent.pop().expect("a claim");
    bench.step(Input::DeliveryUnknown { token });
    bench.wait(400 * MS);
    assert_eq!(
        bench.kinds_sent(),
        ["claim"],
        "another one of the same epoch"
    );
    let offset = bench.append(late);
    bench.consume(offset);
    assert_eq!(bench.machine.view().role, SlotRole::Leader);
    let id = bench.read();
    let Some(Ok(permit)) = bench.read_answer(id) else {
        panic!("a permit")
    };
    assert!(permit.confirm(START + 539 * MS) && !permit.confirm(START + 540 * MS));
}

fn stored() -> (SlotPosition, Bytes) {
    let mut position = SlotPosition::start();
    let bytes = claim(1, 1, None);
    let entry = Entry::read(&bytes).expect("reads");
    judge(&mut position, LOG, Offset(0), &entry, checksum(&bytes));
    (position, bytes)
}

#[test]
fn a_replica_resumes_where_the_record_before_is_the_same() {
    let (position, bytes) = stored();
    assert_eq!(SlotMachine::follow_from(&position), Offset(0));
    let mut bench = Bench::at(position);
    bench.log.push(bytes);
    bench.consume(Offset(0));
    bench.step(Input::CaughtUp);
    assert_eq!((bench.frozen.clone(), bench.applied.len()), (None, 0));
    assert!(bench.machine.view().caught_up);
}

#[test]
fn a_replica_whose_log_was_replaced_freezes() {
    let (position, _) = stored();
    let mut other = Bench::at(position.clone());
    other.log.push(claim(1, 2, None));
    other.consume(Offset(0));
    let mut trimmed = Bench::at(position.clone());
    trimmed.log = vec![Bytes::new(), Bytes::from_static(b"next")];
    trimmed.consume(Offset(1));
    let mut emptied = Bench::at(position);
    emptied.step(Input::CaughtUp);
    for bench in [other, trimmed, emptied] {
        let reason = bench.frozen.expect("freezes");
        assert!(reason.contains("schema"), "{reason}");
        let view = bench.machine.view();
        assert!(!view.can_lead && !view.caught_up && bench.applied.is_empty());
    }
}

#[test]
fn a_record_that_cannot_be_read_freezes_and_says_where() {
    let mut bench = Bench::leader();
    let pending = bench.write();
    let mut damaged = claim(2, 1, None).to_vec();
    damaged[30] ^= 1;
    let offset = bench.append(damaged.into());
    bench.consume(offset);
    assert!(
        bench
            .frozen
            .as_ref()
            .is_some_and(|reason| reason.contains("record 1 of slot 3"))
    );
    let id = bench.write();
    assert!(matches!(
        bench.write_answer(id),
        Some(Err(SlotError::Frozen { .. }))
    ));
    let id = bench.read();
    assert!(matches!(
        bench.read_answer(id),
        Some(Err(SlotError::Frozen { .. }))
    ));
    assert_eq!(bench.place, None);
    let more = bench.append(Bytes::from_static(b"foreign"));
    bench.consume(more);
    assert_eq!(bench.applied.len(), 1, "nothing behind it is judged");
    bench.wait(5_000 * MS);
    assert_eq!(
        bench.write_answer(pending),
        Some(&Err(SlotError::Unknown { slot: SLOT }))
    );
}

#[test]
fn a_replica_far_behind_is_not_caught_up_until_it_is_near_the_end() {
    let mut bench = Bench::leader();
    bench.step(Input::End(Offset(1 + LAG_RECORDS_MAX)));
    assert!(bench.machine.view().caught_up);
    bench.step(Input::End(Offset(2 + LAG_RECORDS_MAX)));
    assert!(!bench.machine.view().caught_up && !bench.machine.view().can_lead);
    bench.step(Input::End(Offset(2 + CAUGHT_UP_RECORDS)));
    assert!(
        !bench.machine.view().caught_up,
        "between the limits nothing changes"
    );
    bench.step(Input::CaughtUp);
    assert!(bench.machine.view().caught_up);
    bench.step(Input::End(Offset(2 + LAG_RECORDS_MAX)));
    bench.step(Input::End(Offset(1 + CAUGHT_UP_RECORDS)));
    assert!(
        bench.machine.view().caught_up,
        "a slot that is always written has no reader at its end"
    );
}

#[test]
fn a_replica_that_has_not_compared_its_place_is_not_caught_up() {
    let (position, bytes) = stored();
    let end = position.next_offset;
    let mut bench = Bench::at(position);
    bench.step(Input::End(end));
    assert!(!bench.machine.view().caught_up);
    bench.log.push(bytes);
    bench.consume(Offset(0));
    bench.step(Input::End(end));
    assert!(bench.machine.view().caught_up);
}
