//! The state machine of one replica of one slot. No I/O, no clock, no task: time and everything that happens are arguments
//! of [`SlotMachine::step`], and what is to be done is its answer.
//!
//! ```text
//!            claim sent                 own claim judged valid
//! follower ─────────────▶ claiming ───────────────────────────▶ leader
//!    ▲                       │ judged ignored                     │ unknown outcome, or release
//!    ├───────────────────────┘                                    ▼
//!    └──────────────── another's claim judged valid ◀──────── stepped down ──▶ may claim again, a higher epoch
//! ```
//! Records come from two sources, the consumer and the acknowledgements of this replica's own records; each offset is
//! judged once and in order, whichever source reaches it first (the contiguity rule: an acknowledgement counts only when it
//! is the next offset, else it waits until the consumer has filled the gap).

pub mod claiming;
pub mod dedup;
pub mod election;
pub mod event;
pub mod leading;
pub mod lease;
pub mod protocol;
pub mod trim;

use bytes::Bytes;
use kvcluster_crds::{NodeId, Offset, SlotRole};

use crate::effect::{Applied, DedupEntry, Loaded, SlotPosition};
use crate::log::codec::{Body, Entry, Record, checksum};
use crate::seeded::{self, Bug};
use crate::service::{ReadPermit, SlotError};
use claiming::Candidate;
use dedup::Dedup;
use election::Hints;
pub use event::{Behind, Input, Output, RequestId, Settings, Token, View, WriteRequest};
use leading::{Known, Leading, ReadRequest};
use protocol::{Verdict, judge};

/// A replica that is this many records behind the log's end is not caught up, whatever it was before.
pub const LAG_RECORDS_MAX: i64 = 1_000;

/// One replica of one slot.
#[derive(Clone, Debug)]
pub struct SlotMachine {
    settings: Settings,
    position: SlotPosition,
    dedup: Dedup,
    /// Checksum that the record before `position.next_offset` must have; none when it was checked, or there is none.
    unverified: Option<u64>,
    frozen: Option<String>,
    caught_up: bool,
    stopping: bool,
    hints: Hints,
    leader_read_at_ns: u64,
    leading: Option<Leading>,
    candidate: Option<Candidate>,
    vacant_since_ns: Option<u64>,
    tokens: u64,
    place: Option<NodeId>,
    records_valid: u64,
    records_ignored: u64,
}

impl SlotMachine {
    /// A replica that stands where `loaded` says, loaded at `now_ns`. Its consumer must begin at [`SlotMachine::follow_from`].
    pub fn new(settings: Settings, loaded: Loaded, now_ns: u64) -> Self {
        let Loaded {
            mut position,
            dedup,
        } = loaded;
        if seeded::on(Bug::ResumesOneLater) && position.checksum_before.take().is_some() {
            position.next_offset.0 += 1;
        }
        Self {
            settings,
            unverified: position.checksum_before,
            position,
            dedup: Dedup::load(dedup),
            frozen: None,
            caught_up: false,
            stopping: false,
            hints: Hints::default(),
            leader_read_at_ns: now_ns,
            leading: None,
            candidate: None,
            vacant_since_ns: None,
            tokens: 0,
            place: None,
            records_valid: 0,
            records_ignored: 0,
        }
    }

    /// A machine that goes on by itself from here, and `permits` of this one made into permits of it: to explore what may
    /// follow. (A clone shares its leases with the original.)
    #[must_use]
    pub fn fork(&self, permits: &mut [ReadPermit]) -> Self {
        let mut copy = self.clone();
        // Permits of earlier epochs may stay shared: nothing moves them any more.
        if let Some(leading) = &mut copy.leading {
            leading.part(permits);
        }
        copy
    }

    /// Where it stands.
    pub fn position(&self) -> &SlotPosition {
        &self.position
    }

    /// What the machine was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where the consumer begins: one before the next record, so that it can be compared with what was read before.
    pub fn follow_from(position: &SlotPosition) -> Offset {
        match position.checksum_before {
            Some(_) => Offset(position.next_offset.0 - 1),
            None => position.next_offset,
        }
    }

    /// What happened, and what is to be done. Times never go back.
    pub fn step(&mut self, now_ns: u64, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Record { offset, bytes } => self.read_record(now_ns, offset, &bytes, &mut out),
            Input::CaughtUp => self.reached_end(&mut out),
            Input::End(end) => {
                self.caught_up &= end.0 - self.position.next_offset.0 <= LAG_RECORDS_MAX;
            }
            Input::Delivered { token, offset } => self.delivered(token, offset, &mut out),
            Input::DeliveryUnknown { token } => self.delivery_unknown(token, &mut out),
            Input::Write(request) => self.write(now_ns, request, &mut out),
            Input::Read { id, deadline_ns } => {
                let repeat = None;
                let read = ReadRequest {
                    id,
                    deadline_ns,
                    repeat,
                };
                self.read(now_ns, read, &mut out);
            }
            Input::Hints(hints) => self.hints = hints,
            Input::Behind(Behind { reason, .. }) | Input::Freeze(reason) => {
                self.freeze(reason, &mut out);
            }
            Input::Restored(loaded) => self.restored(now_ns, loaded, &mut out),
            Input::Stop => self.stopping = true,
            Input::Tick => {
                if let Some(leading) = &mut self.leading {
                    leading.expire(now_ns, &mut out);
                }
            }
        }
        self.settle(now_ns, &mut out);
        out
    }

    /// Whether a machine that was told to stop has nothing more to send or to wait for.
    pub fn has_stopped(&self) -> bool {
        self.stopping && self.leading.as_ref().is_none_or(Leading::is_idle)
    }

    /// Whether this replica serves and no other can, at `now_ns`: its lease holds.
    pub fn surely_leads(&self, now_ns: u64) -> bool {
        self.leading
            .as_ref()
            .is_some_and(|leading| leading.surely_leads(now_ns))
    }

    /// The machine as others may see it.
    pub fn view(&self) -> View {
        let role = match (&self.leading, &self.candidate) {
            (Some(leading), _) if leading.serves() => SlotRole::Leader,
            (
                _,
                Some(Candidate {
                    in_flight: Some(_), ..
                }),
            ) => SlotRole::Claiming,
            (Some(_), _) => SlotRole::SteppedDown,
            (None, _) => SlotRole::Follower,
        };
        View {
            role,
            leader: self.position.leader.map(|(node, _)| node),
            epoch: self.position.epoch,
            applied: self.position.next_offset,
            whole: self.is_whole(),
            caught_up: self.caught_up && self.frozen.is_none() && self.is_whole(),
            can_lead: self.can_lead(),
            records_valid: self.records_valid,
            records_ignored: self.records_ignored,
            frozen: self.frozen.clone(),
        }
    }

    fn read_record(&mut self, now_ns: u64, offset: Offset, bytes: &Bytes, out: &mut Vec<Output>) {
        if self.frozen.is_some() {
            return;
        }
        if let Some(expected) = self.unverified {
            return self.verify(offset, bytes, expected, out);
        }
        if offset < self.position.next_offset {
            return;
        }
        match Entry::read(bytes) {
            Ok(entry) => {
                self.observe(now_ns, offset, &entry, checksum(bytes), out);
                self.observe_acknowledged(now_ns, out);
            }
            Err(error) => {
                let slot = self.settings.slot;
                self.freeze(format!("record {offset} of slot {slot}: {error}"), out);
            }
        }
    }

    /// Compares the first record with the one that stood before the stored position.
    fn verify(&mut self, offset: Offset, bytes: &Bytes, expected: u64, out: &mut Vec<Output>) {
        let before = Offset(self.position.next_offset.0 - 1);
        if offset < before {
            return;
        }
        if offset == before && checksum(bytes) == expected {
            self.unverified = None;
            return;
        }
        let what = if offset > before {
            "is missing"
        } else {
            "is another than the one applied"
        };
        let reason = format!(
            "record {before} of the log {what}: the topic was emptied, trimmed or replaced; restore the topic, or remove \
             this node's schema and rebuild it"
        );
        self.freeze(reason, out);
    }

    fn reached_end(&mut self, out: &mut Vec<Output>) {
        if self.unverified.is_some() && self.frozen.is_none() {
            let next = self.position.next_offset;
            let reason = format!(
                "the log ends before record {next}, up to which it was applied: the topic was emptied or replaced; restore \
                 the topic, or remove this node's schema and rebuild it"
            );
            self.freeze(reason, out);
        }
        self.caught_up = self.frozen.is_none();
        if seeded::on(Bug::ReadBackTakenAsFinal)
            && let Some(leading) = self.leading.as_mut().filter(|leading| !leading.serves())
        {
            leading.take_as_none(out);
        }
    }

    /// Judges own records whose acknowledged place is the next one.
    fn observe_acknowledged(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        if self.unverified.is_some() || self.frozen.is_some() {
            return;
        }
        while let Some((offset, entry, sum)) = self.next_acknowledged() {
            self.observe(now_ns, offset, &entry, sum, out);
        }
    }

    fn next_acknowledged(&self) -> Option<(Offset, Entry, u64)> {
        let next = self.position.next_offset;
        let claim = self
            .candidate
            .as_ref()
            .and_then(|candidate| candidate.in_flight.as_ref());
        if let Some(claim) = claim.filter(|claim| claim.acknowledged == Some(next)) {
            return Some((next, claim.entry.clone(), claim.checksum));
        }
        let (entry, sum) = self.leading.as_ref()?.record_at(next)?;
        Some((next, entry, sum))
    }

    fn observe(
        &mut self,
        now_ns: u64,
        offset: Offset,
        entry: &Entry,
        sum: u64,
        out: &mut Vec<Output>,
    ) {
        let verdict = judge(&mut self.position, self.settings.log_id, offset, entry, sum);
        let valid = verdict == Verdict::Valid;
        *(if valid {
            &mut self.records_valid
        } else {
            &mut self.records_ignored
        }) += 1;
        let (effects, dedup) = match entry {
            Entry::Ours(record) if valid => (record.effects(), self.remember(offset, record)),
            Entry::Ours(_) | Entry::Foreign => (Vec::new(), None),
        };
        let position = self.position.clone();
        out.push(Output::Apply(Applied {
            slot: self.settings.slot,
            offset,
            effects,
            dedup,
            position,
        }));
        if valid {
            self.leader_read_at_ns = now_ns;
        }
        if let Entry::Ours(record) = entry {
            self.after(now_ns, offset, record, valid, out);
        }
    }

    /// Brings what is remembered of requests up to a record that counts.
    fn remember(&mut self, offset: Offset, record: &Record) -> Option<DedupEntry> {
        let time_ms = self.position.time_ms;
        self.dedup.pass_to(time_ms);
        let idempotency = record.idempotency()?;
        let entry = DedupEntry {
            key: idempotency.key.as_ref().into(),
            fingerprint: idempotency.fingerprint,
            version: offset,
            time_ms,
        };
        self.dedup.remember(&entry);
        Some(entry)
    }

    fn after(
        &mut self,
        now_ns: u64,
        offset: Offset,
        record: &Record,
        valid: bool,
        out: &mut Vec<Output>,
    ) {
        let (epoch, incarnation) = record.body.author();
        let own = incarnation == self.settings.incarnation;
        match &record.body {
            Body::Claim { .. } => {
                if valid && let Some(leading) = self.leading.take() {
                    leading.lost(out);
                }
                if valid {
                    self.vacant_since_ns = None;
                }
                if own && valid {
                    self.lead(now_ns, epoch);
                } else if own {
                    self.claim_ignored(record);
                }
            }
            Body::Command { seq, .. } | Body::Renew { seq, .. } | Body::Release { seq, .. } => {
                let leading = self
                    .leading
                    .as_mut()
                    .filter(|leading| leading.epoch == epoch);
                match leading {
                    Some(leading) if own && valid => {
                        let by_lease = self.settings.reads_by_lease;
                        leading.confirmed(now_ns, by_lease, *seq, offset, out);
                    }
                    Some(leading) if own => leading.ignored(*seq, out),
                    _ => {}
                }
            }
        }
    }

    fn delivered(&mut self, token: Token, offset: Offset, out: &mut Vec<Output>) {
        let claim = self
            .candidate
            .as_mut()
            .and_then(|candidate| candidate.in_flight.as_mut());
        if let Some(claim) = claim.filter(|claim| claim.token == token) {
            claim.acknowledged = Some(offset);
        } else if let Some(leading) = &mut self.leading {
            leading.acknowledged(token, offset);
            if seeded::on(Bug::ContiguityUnchecked) {
                leading.take_as_done(token, offset, out);
            }
        }
    }

    fn delivery_unknown(&mut self, token: Token, out: &mut Vec<Output>) {
        if let Some(candidate) = &mut self.candidate {
            candidate.in_flight.take_if(|claim| claim.token == token);
        }
        if let Some(leading) = self
            .leading
            .as_mut()
            .filter(|leading| leading.has_in_flight(token))
        {
            if seeded::on(Bug::UnknownTakenAsNone) {
                leading.take_as_none(out);
            }
            leading.step_down(out);
        }
    }

    fn write(&mut self, now_ns: u64, request: WriteRequest, out: &mut Vec<Output>) {
        let (slot, id) = (self.settings.slot, request.id);
        let known = Known {
            now_ns,
            by_lease: self.settings.reads_by_lease,
            dedup: &self.dedup,
            dedup_entries_max: self.settings.dedup_entries_max,
        };
        let answer = match (&self.frozen, &mut self.leading) {
            (Some(reason), _) => Err(SlotError::Frozen {
                slot,
                reason: reason.clone(),
            }),
            (None, Some(leading)) => leading.write(known, request, out),
            (None, None) => Err(SlotError::NotLeader { slot }),
        };
        if let Err(error) = answer {
            out.push(Output::WriteAnswer {
                id,
                answer: Err(error),
            });
        }
    }

    fn read(&mut self, now_ns: u64, read: ReadRequest, out: &mut Vec<Output>) {
        let slot = self.settings.slot;
        let by_lease = self.settings.reads_by_lease;
        match (&self.frozen, &mut self.leading) {
            (Some(reason), _) => {
                let reason = reason.clone();
                out.push(read.answer(Err(SlotError::Frozen { slot, reason })));
            }
            (None, Some(leading)) => leading.read(now_ns, by_lease, read, out),
            (None, None) => out.push(read.answer(Err(SlotError::NotLeader { slot }))),
        }
    }

    fn freeze(&mut self, reason: String, out: &mut Vec<Output>) {
        if self.frozen.is_some() {
            return;
        }
        if let Some(leading) = &mut self.leading {
            leading.step_down(out);
        }
        self.caught_up = false;
        self.frozen = Some(reason.clone());
        out.push(Output::Frozen(reason));
    }

    /// Begins anew from a snapshot. The tokens go on: fates of records that were sent before may still come.
    fn restored(&mut self, now_ns: u64, loaded: Option<Loaded>, out: &mut Vec<Output>) {
        if let Some(mut leading) = self.leading.take() {
            leading.step_down(out);
            // Nobody is left who could learn what became of it.
            leading.expire(u64::MAX, out);
        }
        if let Some(loaded) = loaded {
            self.position = loaded.position;
            self.dedup = Dedup::load(loaded.dedup);
        }
        if seeded::on(Bug::ServesBeforeWhole) {
            self.position.whole_at = None;
        }
        self.candidate = None;
        self.vacant_since_ns = None;
        self.frozen = None;
        self.caught_up = false;
        self.unverified = self.position.checksum_before;
        self.leader_read_at_ns = now_ns;
    }

    fn is_whole(&self) -> bool {
        self.position.whole_at.is_none()
    }

    /// What follows from the new state, whatever the input was.
    fn settle(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        self.observe_acknowledged(now_ns, out);
        self.give_away(now_ns, out);
        if let Some(leading) = &mut self.leading {
            leading.pump(now_ns, &mut self.tokens, out);
        }
        self.claim(now_ns, out);
        let place = self.serving_node();
        if place != self.place {
            self.place = place;
            out.push(Output::Place(place));
        }
    }

    fn serving_node(&self) -> Option<NodeId> {
        let (leader, _) = self
            .position
            .leader
            .filter(|_| self.position.released_to.is_none())?;
        let serves = if leader == self.settings.node {
            self.leading.as_ref().is_some_and(Leading::serves)
        } else {
            self.hints.alive(leader)
        };
        serves.then_some(leader)
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a test are small"
)]
mod tests;
