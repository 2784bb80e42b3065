//! What a leader has on its way: writes that wait, records that are sent and not yet judged, reads that wait for a record.
//!
//! ```text
//! write ──▶ staged ──(nothing in flight)──▶ in flight ──(judged valid)──▶ answered with its offset
//!             │ step down: never sent              │ deadline: unknown, and still in flight
//!             ▼                                    ▼ a higher epoch's claim was read first
//!         not leader                              lost
//! ```
//! One batch of records is in flight at a time: what arrives meanwhile is sent together when the batch is judged. A batch
//! proves leadership to the reads that arrived before it was sent.
//!
//! A write whose idempotency key is known gets no record: it waits for the fate of the one that is on its way, and is then a
//! linearizable read of what is remembered.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kvcluster_crds::{Epoch, Incarnation, LogId, NodeId, Offset, SlotId};

use super::dedup::Dedup;
use super::event::{Output, RequestId, Settings, Token, WriteRequest};
use super::lease::{MS, lease_end, renew_from};
use crate::effect::{Effect, Idempotency};
use crate::log::codec::{Body, Entry, RECORD_BYTES_MAX, Record, checksum};
use crate::seeded::{self, Bug};
use crate::service::{LeaseClock, ReadPermit, SlotError, Tenure};
pub(super) use waiting::ReadRequest;
use waiting::{InFlight, Joined, Repeat, Staged};

mod ending;
mod waiting;

/// Most records of a batch: enough for every connection of a busy node to have one.
pub const BATCH_RECORDS_MAX: usize = 1_024;
/// Most bytes of a batch's keys and values; one record may be larger.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most writes of a slot that wait for the batch in flight.
pub const STAGED_RECORDS_MAX: usize = 4_096;
/// Most bytes of the keys and values of writes of a slot that wait for the batch in flight.
pub const STAGED_BYTES_MAX: usize = 16 << 20;
/// Most reads of a slot that wait for a record.
pub const READS_WAITING_MAX: usize = 16_384;
/// A batch that is in flight for longer says that the log takes no records: new writes are refused, nanoseconds.
pub const STALLED_AFTER_NS: u64 = 1_000 * MS;
/// Most retries that wait for the fate of one record: many times as often as a client sends a request within its deadline.
pub const JOINED_MAX: usize = 64;
/// Bytes of a command beside its keys and values, at most, and of each effect.
const COMMAND_BYTES: usize = 256;
const EFFECT_BYTES: usize = 9;

/// The state of a leader in one epoch.
#[derive(Clone, Debug)]
pub(super) struct Leading {
    pub(super) epoch: Epoch,
    pub(super) led_since_ns: u64,
    slot: SlotId,
    log_id: LogId,
    incarnation: Incarnation,
    lease_ms: u32,
    duty: Duty,
    clock: Arc<LeaseClock>,
    tenure: Arc<Tenure>,
    lease_end_ns: u64,
    next_seq: u64,
    in_flight: VecDeque<InFlight>,
    staged: VecDeque<Staged>,
    staged_bytes: usize,
    /// Idempotency keys of what is staged and in flight.
    unjudged: BTreeSet<Bytes>,
    /// The newest time that a record of the slot has, or gets when it is sent.
    time_ms: u64,
    reads: Vec<ReadRequest>,
    read_since_sent: bool,
}

/// What a write has to know of the rest of the machine.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) now_ns: u64,
    pub(super) by_lease: bool,
    pub(super) dedup: &'a Dedup,
    pub(super) dedup_entries_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    Serves,
    /// Sends what is staged, then the release.
    Releases {
        to: NodeId,
        sent: bool,
    },
    /// Never writes again in this epoch.
    SteppedDown,
}

impl Leading {
    /// A leader whose claim was sent at `sent_at_ns` and is valid now; the slot's time is `time_ms`.
    pub(super) fn begin(
        settings: &Settings,
        epoch: Epoch,
        sent_at_ns: u64,
        now_ns: u64,
        time_ms: u64,
    ) -> Self {
        let lease_end_ns = lease_end(sent_at_ns, settings.lease_ms);
        let clock = Arc::new(LeaseClock::default());
        clock.set(lease_end_ns);
        Self {
            epoch,
            led_since_ns: now_ns,
            slot: settings.slot,
            log_id: settings.log_id,
            incarnation: settings.incarnation,
            lease_ms: settings.lease_ms,
            duty: Duty::Serves,
            clock,
            tenure: Arc::default(),
            lease_end_ns,
            next_seq: 1,
            in_flight: VecDeque::new(),
            staged: VecDeque::new(),
            staged_bytes: 0,
            unjudged: BTreeSet::new(),
            time_ms,
            reads: Vec::new(),
            read_since_sent: false,
        }
    }

    pub(super) fn serves(&self) -> bool {
        self.duty == Duty::Serves
    }

    pub(super) fn surely_leads(&self, now_ns: u64) -> bool {
        self.serves() && self.clock.holds(now_ns)
    }

    /// Whether it has sent everything that it will ever send, and all of it is judged.
    pub(super) fn is_idle(&self) -> bool {
        let may_send = matches!(self.duty, Duty::Releases { sent: false, .. });
        self.in_flight.is_empty() && self.staged.is_empty() && !may_send
    }

    pub(super) fn write(
        &mut self,
        known: Known<'_>,
        request: WriteRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), SlotError> {
        let slot = self.slot;
        if !self.serves() {
            return Err(SlotError::NotLeader { slot });
        }
        let time_ms = self.time_ms.max(request.wall_ms);
        if let Some(idempotency) = &request.idempotency {
            if let Some(earlier) = known.dedup.find(&idempotency.key) {
                let repeat = Repeat {
                    version: earlier.version,
                    is_same: earlier.is_same(idempotency),
                };
                self.read(known.now_ns, known.by_lease, request.repeating(repeat), out);
                return Ok(());
            }
            if self.unjudged.contains(&idempotency.key) {
                return self.join(&request, idempotency);
            }
            let most = known.dedup_entries_max;
            if known.dedup.count_at(time_ms) + self.unjudged.len() >= most {
                let what = format!(
                    "slot {slot} remembers {most} idempotency keys, the most allowed; each is forgotten after 10 minutes"
                );
                return Err(SlotError::Overloaded { what });
            }
        }
        self.stage(known.now_ns, time_ms, request)
    }

    fn stage(&mut self, now_ns: u64, time_ms: u64, request: WriteRequest) -> Result<(), SlotError> {
        let slot = self.slot;
        let stalled = |front: &InFlight| front.sent_at_ns + STALLED_AFTER_NS < now_ns;
        if self.in_flight.front().is_some_and(stalled) {
            return Err(SlotError::LogUnavailable { slot });
        }
        let effects = &request.effects;
        let bytes = effects.iter().map(Effect::bytes).sum::<usize>();
        if COMMAND_BYTES + effects.len() * EFFECT_BYTES + bytes > RECORD_BYTES_MAX {
            let what = format!("a command may have {RECORD_BYTES_MAX} bytes");
            return Err(SlotError::Overloaded { what });
        }
        if self.staged.len() >= STAGED_RECORDS_MAX || self.staged_bytes + bytes > STAGED_BYTES_MAX {
            let what = format!(
                "slot {slot} has {STAGED_RECORDS_MAX} writes or {STAGED_BYTES_MAX} bytes waiting"
            );
            return Err(SlotError::Overloaded { what });
        }
        self.time_ms = time_ms;
        self.staged_bytes += bytes;
        if let Some(idempotency) = &request.idempotency {
            self.unjudged.insert(idempotency.key.clone());
        }
        self.staged.push_back(Staged {
            id: request.id,
            deadline_ns: request.deadline_ns,
            effects: request.effects,
            idempotency: request.idempotency,
            time_ms,
            bytes,
            joined: Vec::new(),
        });
        Ok(())
    }

    /// Lets a retry wait for the fate of the record that has its key.
    fn join(&mut self, request: &WriteRequest, wanted: &Idempotency) -> Result<(), SlotError> {
        let key = &wanted.key;
        let sent = self.in_flight.iter_mut();
        let sent = sent.filter_map(|sent| {
            let found = sent.idempotency().filter(|known| known.key == key)?;
            let is_same = found.fingerprint == wanted.fingerprint;
            Some((is_same, &mut sent.joined))
        });
        let staged = self.staged.iter_mut().filter_map(|staged| {
            let found = staged.idempotency.as_ref();
            let found = found.filter(|known| known.key == key)?;
            let is_same = found.fingerprint == wanted.fingerprint;
            Some((is_same, &mut staged.joined))
        });
        let (is_same, joined) = sent
            .chain(staged)
            .next()
            .expect("a key is unjudged while its record is staged or in flight");
        if joined.len() >= JOINED_MAX {
            let what = format!("{JOINED_MAX} requests with this idempotency key are waiting");
            return Err(SlotError::Overloaded { what });
        }
        joined.push(Joined {
            id: request.id,
            deadline_ns: request.deadline_ns,
            is_same,
        });
        Ok(())
    }

    /// Answers a read with a permit, or lets it wait for a record.
    pub(super) fn read(
        &mut self,
        now_ns: u64,
        by_lease: bool,
        read: ReadRequest,
        out: &mut Vec<Output>,
    ) {
        let mut may_read = self.serves();
        if seeded::on(Bug::ServesWhileReleasing) {
            may_read |= matches!(self.duty, Duty::Releases { .. });
        }
        if !may_read {
            out.push(read.answer(Err(SlotError::NotLeader { slot: self.slot })));
            return;
        }
        self.read_since_sent = true;
        if by_lease && self.clock.holds(now_ns) {
            out.push(read.answer(Ok(ReadPermit::Lease(Arc::clone(&self.clock)))));
            return;
        }
        if seeded::on(Bug::RecordServesLaterReads)
            && let Some(sent) = self.in_flight.front_mut()
        {
            sent.reads.push(read);
            return;
        }
        if self.reads.len() >= READS_WAITING_MAX {
            let what = format!("slot {} has {READS_WAITING_MAX} reads waiting", self.slot);
            out.push(read.answer(Err(SlotError::Overloaded { what })));
            return;
        }
        self.reads.push(read);
    }

    /// Sends the next batch, when there is something to send and nothing is in flight.
    pub(super) fn pump(&mut self, now_ns: u64, tokens: &mut u64, out: &mut Vec<Output>) {
        if !self.in_flight.is_empty() || self.duty == Duty::SteppedDown {
            return;
        }
        let mut bytes = 0;
        while let Some(write) = self.staged.front() {
            let fits = bytes + write.bytes <= BATCH_BYTES_MAX || self.in_flight.is_empty();
            if !fits || self.in_flight.len() >= BATCH_RECORDS_MAX {
                break;
            }
            bytes += write.bytes;
            let write = self.staged.pop_front().expect("the queue has a front");
            self.staged_bytes -= write.bytes;
            let (epoch, incarnation, seq) = (self.epoch, self.incarnation, self.next_seq);
            let body = Body::Command {
                epoch,
                incarnation,
                seq,
                time_ms: write.time_ms,
                idempotency: write.idempotency,
                effects: write.effects,
            };
            let waits = Some((write.id, write.deadline_ns));
            self.send(now_ns, body, waits, tokens, out);
            if let Some(sent) = self.in_flight.back_mut() {
                sent.joined = write.joined;
            }
        }
        self.pump_rest(now_ns, tokens, out);
        let reads = std::mem::take(&mut self.reads);
        match self.in_flight.front_mut() {
            Some(first) => {
                first.reads = reads;
                self.read_since_sent = false;
            }
            None => self.reads = reads,
        }
    }

    fn pump_rest(&mut self, now_ns: u64, tokens: &mut u64, out: &mut Vec<Output>) {
        let (epoch, incarnation, seq) = (self.epoch, self.incarnation, self.next_seq);
        match self.duty {
            Duty::Releases { to, sent: false } if self.staged.is_empty() => {
                self.duty = Duty::Releases { to, sent: true };
                self.send(
                    now_ns,
                    Body::Release {
                        epoch,
                        incarnation,
                        seq,
                        to,
                    },
                    None,
                    tokens,
                    out,
                );
            }
            Duty::Serves if self.in_flight.is_empty() => {
                let ahead =
                    self.read_since_sent && now_ns >= renew_from(self.lease_end_ns, self.lease_ms);
                if ahead || !self.reads.is_empty() {
                    self.send(
                        now_ns,
                        Body::Renew {
                            epoch,
                            incarnation,
                            seq,
                        },
                        None,
                        tokens,
                        out,
                    );
                }
            }
            _ => {}
        }
    }

    fn send(
        &mut self,
        now_ns: u64,
        body: Body,
        write: Option<(RequestId, u64)>,
        tokens: &mut u64,
        out: &mut Vec<Output>,
    ) {
        let token = Token::next(tokens);
        let record = Record {
            log_id: self.log_id,
            body,
        };
        let bytes = record.encode();
        self.in_flight.push_back(InFlight {
            token,
            seq: self.next_seq,
            sent_at_ns: now_ns,
            entry: Entry::Ours(record),
            checksum: checksum(&bytes),
            acknowledged: None,
            write,
            joined: Vec::new(),
            reads: Vec::new(),
        });
        self.next_seq += 1;
        out.push(Output::Append { token, bytes });
    }

    /// Notes where a record stands. Records that were judged meanwhile are not known here any more.
    pub(super) fn acknowledged(&mut self, token: Token, offset: Offset) {
        if let Some(sent) = self.in_flight.iter_mut().find(|sent| sent.token == token) {
            sent.acknowledged = Some(offset);
        }
    }

    pub(super) fn has_in_flight(&self, token: Token) -> bool {
        self.in_flight.iter().any(|sent| sent.token == token)
    }

    /// The record that is acknowledged at `offset`, if it is one of ours: the contiguity rule lets it be judged unread.
    pub(super) fn record_at(&self, offset: Offset) -> Option<(Entry, u64)> {
        let sent = self
            .in_flight
            .iter()
            .find(|sent| sent.acknowledged == Some(offset))?;
        Some((sent.entry.clone(), sent.checksum))
    }

    /// Record `seq` stands in the log at `offset` and is valid.
    pub(super) fn confirmed(
        &mut self,
        now_ns: u64,
        by_lease: bool,
        seq: u64,
        offset: Offset,
        out: &mut Vec<Output>,
    ) {
        let Some(sent) = self.in_flight.pop_front_if(|sent| sent.seq == seq) else {
            return;
        };
        if let Some(idempotency) = sent.idempotency() {
            self.unjudged.remove(&idempotency.key);
        }
        if let Some((id, _)) = sent.write {
            out.push(Output::WriteAnswer {
                id,
                answer: Ok(offset),
            });
        }
        for read in sent.reads {
            out.push(read.answer(Ok(ReadPermit::Record(Arc::clone(&self.tenure)))));
        }
        if self.serves() {
            let end_ns = lease_end(sent.sent_at_ns, self.lease_ms);
            self.lease_end_ns = self.lease_end_ns.max(end_ns);
            self.clock.set(self.lease_end_ns);
        }
        for joined in sent.joined {
            self.read(now_ns, by_lease, joined.repeating(offset), out);
        }
    }

    /// Record `seq` stands in the log and does not count. If it is still in flight, the log has not kept the order: nothing
    /// behind it can count, and only another epoch decides it, since it may stand there once more.
    pub(super) fn ignored(&mut self, seq: u64, out: &mut Vec<Output>) {
        if self.in_flight.iter().any(|sent| sent.seq == seq) {
            self.step_down(out);
        }
    }

    /// Stops serving, sends what is staged and then the release.
    pub(super) fn release(&mut self, to: NodeId, out: &mut Vec<Output>) {
        if self.serves() {
            if !seeded::on(Bug::ServesWhileReleasing) {
                self.stop_reads(out);
            }
            self.duty = Duty::Releases { to, sent: false };
        }
    }

    /// Makes this leader's clock and tenure its own, and those of its permits with them.
    pub(super) fn part(&mut self, permits: &mut [ReadPermit]) {
        let (clock, tenure) = (Arc::new(self.clock.copy()), Arc::new(self.tenure.copy()));
        for permit in permits {
            match permit {
                ReadPermit::Lease(of) if Arc::ptr_eq(of, &self.clock) => *of = Arc::clone(&clock),
                ReadPermit::Record(of) if Arc::ptr_eq(of, &self.tenure) => {
                    *of = Arc::clone(&tenure);
                }
                ReadPermit::Lease(_) | ReadPermit::Record(_) => {}
            }
        }
        (self.clock, self.tenure) = (clock, tenure);
    }
}
