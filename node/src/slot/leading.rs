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

use std::collections::VecDeque;
use std::sync::Arc;

use kvcluster_crds::{Epoch, Incarnation, LogId, NodeId, Offset, SlotId};

use super::lease::{MS, lease_end, renew_from};
use super::{Output, RequestId, Settings, Token};
use crate::effect::Effect;
use crate::log::codec::{Body, Entry, RECORD_BYTES_MAX, Record, checksum};
use crate::seeded::{self, Bug};
use crate::service::{LeaseClock, ReadPermit, SlotError, Tenure};

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
/// Bytes of a command beside its keys and values, at most, and of each effect.
const COMMAND_BYTES: usize = 64;
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
    reads: Vec<ReadRequest>,
    read_since_sent: bool,
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

#[derive(Clone, Debug)]
struct InFlight {
    token: Token,
    seq: u64,
    sent_at_ns: u64,
    entry: Entry,
    checksum: u64,
    acknowledged: Option<Offset>,
    write: Option<(RequestId, u64)>,
    reads: Vec<ReadRequest>,
}

#[derive(Clone, Debug)]
struct Staged {
    id: RequestId,
    deadline_ns: u64,
    effects: Vec<Effect>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct ReadRequest {
    id: RequestId,
    deadline_ns: u64,
}

impl Leading {
    /// A leader whose claim was sent at `sent_at_ns` and is valid now.
    pub(super) fn begin(settings: &Settings, epoch: Epoch, sent_at_ns: u64, now_ns: u64) -> Self {
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
            reads: Vec::new(),
            read_since_sent: false,
        }
    }

    pub(super) fn serves(&self) -> bool {
        self.duty == Duty::Serves
    }

    /// Whether it has sent everything that it will ever send, and all of it is judged.
    pub(super) fn is_idle(&self) -> bool {
        let may_send = matches!(self.duty, Duty::Releases { sent: false, .. });
        self.in_flight.is_empty() && self.staged.is_empty() && !may_send
    }

    pub(super) fn write(
        &mut self,
        now_ns: u64,
        id: RequestId,
        deadline_ns: u64,
        effects: Vec<Effect>,
    ) -> Result<(), SlotError> {
        let slot = self.slot;
        if !self.serves() {
            return Err(SlotError::NotLeader { slot });
        }
        let stalled = |front: &InFlight| front.sent_at_ns + STALLED_AFTER_NS < now_ns;
        if self.in_flight.front().is_some_and(stalled) {
            return Err(SlotError::LogUnavailable { slot });
        }
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
        self.staged_bytes += bytes;
        self.staged.push_back(Staged {
            id,
            deadline_ns,
            effects,
            bytes,
        });
        Ok(())
    }

    /// A permit at once, or none when the read has to wait for a record.
    pub(super) fn read(
        &mut self,
        now_ns: u64,
        by_lease: bool,
        id: RequestId,
        deadline_ns: u64,
    ) -> Result<Option<ReadPermit>, SlotError> {
        let mut may_read = self.serves();
        if seeded::on(Bug::ServesWhileReleasing) {
            may_read |= matches!(self.duty, Duty::Releases { .. });
        }
        if !may_read {
            return Err(SlotError::NotLeader { slot: self.slot });
        }
        self.read_since_sent = true;
        if by_lease && self.clock.holds(now_ns) {
            return Ok(Some(ReadPermit::Lease(Arc::clone(&self.clock))));
        }
        if seeded::on(Bug::RecordServesLaterReads)
            && let Some(sent) = self.in_flight.front_mut()
        {
            sent.reads.push(ReadRequest { id, deadline_ns });
            return Ok(None);
        }
        if self.reads.len() >= READS_WAITING_MAX {
            let what = format!("slot {} has {READS_WAITING_MAX} reads waiting", self.slot);
            return Err(SlotError::Overloaded { what });
        }
        self.reads.push(ReadRequest { id, deadline_ns });
        Ok(None)
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
                effects: write.effects,
            };
            self.send(
                now_ns,
                body,
                Some((write.id, write.deadline_ns)),
                tokens,
                out,
            );
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
    pub(super) fn confirmed(&mut self, seq: u64, offset: Offset, out: &mut Vec<Output>) {
        let Some(sent) = self.in_flight.pop_front_if(|sent| sent.seq == seq) else {
            return;
        };
        if let Some((id, _)) = sent.write {
            out.push(Output::WriteAnswer {
                id,
                answer: Ok(offset),
            });
        }
        for ReadRequest { id, .. } in sent.reads {
            out.push(Output::ReadAnswer {
                id,
                answer: Ok(ReadPermit::Record(Arc::clone(&self.tenure))),
            });
        }
        if self.serves() {
            let end_ns = lease_end(sent.sent_at_ns, self.lease_ms);
            self.lease_end_ns = self.lease_end_ns.max(end_ns);
            self.clock.set(self.lease_end_ns);
        }
    }

    /// Record `seq` stands in the log and does not count. If it is still in flight, the log has not kept the order: nothing
    /// behind it can count, and only another epoch decides it, since it may stand there once more.
    pub(super) fn ignored(&mut self, seq: u64, out: &mut Vec<Output>) {
        if self.in_flight.iter().any(|sent| sent.seq == seq) {
            self.step_down(out);
        }
    }

    /// Stops serving for good, because an outcome is not known. What is in flight stays undecided.
    pub(super) fn step_down(&mut self, out: &mut Vec<Output>) {
        self.stop_reads(out);
        self.duty = Duty::SteppedDown;
        let slot = self.slot;
        self.staged_bytes = 0;
        for write in self.staged.drain(..) {
            let answer = Err(SlotError::NotLeader { slot });
            out.push(Output::WriteAnswer {
                id: write.id,
                answer,
            });
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

    /// Another epoch began before what is in flight: none of it will ever count.
    pub(super) fn lost(mut self, out: &mut Vec<Output>) {
        self.tenure.end();
        self.step_down(out);
        let slot = self.slot;
        for sent in self.in_flight {
            if let Some((id, _)) = sent.write {
                out.push(Output::WriteAnswer {
                    id,
                    answer: Err(SlotError::Lost { slot }),
                });
            }
        }
    }

    /// Answers what has waited for longer than its deadline.
    pub(super) fn expire(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        let slot = self.slot;
        let mut late = Vec::new();
        for sent in &mut self.in_flight {
            if let Some((id, _)) = sent
                .write
                .take_if(|(_, deadline_ns)| *deadline_ns <= now_ns)
            {
                out.push(Output::WriteAnswer {
                    id,
                    answer: Err(SlotError::Unknown { slot }),
                });
            }
            late.extend(sent.reads.extract_if(.., |read| read.deadline_ns <= now_ns));
        }
        late.extend(self.reads.extract_if(.., |read| read.deadline_ns <= now_ns));
        for read in late {
            let answer = Err(SlotError::LogUnavailable { slot });
            out.push(Output::ReadAnswer {
                id: read.id,
                answer,
            });
        }
        let bytes = &mut self.staged_bytes;
        self.staged.retain(|write| {
            let waits = write.deadline_ns > now_ns;
            if !waits {
                *bytes -= write.bytes;
                let answer = Err(SlotError::LogUnavailable { slot });
                out.push(Output::WriteAnswer {
                    id: write.id,
                    answer,
                });
            }
            waits
        });
    }

    /// Answers all that is in flight as if none of it could ever count.
    pub(super) fn take_as_none(&mut self, out: &mut Vec<Output>) {
        let slot = self.slot;
        for (id, _) in self
            .in_flight
            .iter_mut()
            .filter_map(|sent| sent.write.take())
        {
            let answer = Err(SlotError::Lost { slot });
            out.push(Output::WriteAnswer { id, answer });
        }
    }

    /// Answers a record's write by its acknowledgement alone.
    pub(super) fn take_as_done(&mut self, token: Token, offset: Offset, out: &mut Vec<Output>) {
        let sent = self.in_flight.iter_mut().find(|sent| sent.token == token);
        if let Some((id, _)) = sent.and_then(|sent| sent.write.take()) {
            let answer = Ok(offset);
            out.push(Output::WriteAnswer { id, answer });
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

    fn stop_reads(&mut self, out: &mut Vec<Output>) {
        self.clock.set(0);
        let slot = self.slot;
        let sent = self
            .in_flight
            .iter_mut()
            .flat_map(|sent| sent.reads.drain(..));
        for read in sent.chain(self.reads.drain(..)) {
            let answer = Err(SlotError::NotLeader { slot });
            out.push(Output::ReadAnswer {
                id: read.id,
                answer,
            });
        }
    }
}
