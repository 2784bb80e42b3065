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
//! How it learns of records is in `slot/reading.rs`, how it comes to lead in `slot/claiming.rs`, what it does then in
//! `slot/leading.rs`.

pub mod claiming;
pub mod dedup;
pub mod election;
pub mod event;
pub mod leading;
pub mod lease;
pub mod protocol;
mod reading;
pub mod surplus;
pub mod trim;

use kvcluster_crds::{NodeId, Offset, SlotRole};

use crate::effect::{Loaded, SlotPosition};
use crate::seeded::{self, Bug};
use crate::service::{ReadPermit, SlotError};
use claiming::Candidate;
use dedup::Dedup;
use election::Hints;
pub use event::{Behind, Input, Output, RequestId, Settings, Token, View, WriteRequest};
use leading::{Known, Leading, ReadRequest};

/// A replica that is this many records behind the log's end is not caught up, whatever it was before.
pub const LAG_RECORDS_MAX: i64 = 1_000;
/// A replica that is no more than this behind is caught up, although it did not see the end: while a slot is written without
/// a pause, its reader is never told that it stands there.
pub const CAUGHT_UP_RECORDS: i64 = LAG_RECORDS_MAX / 2;

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
            tokens: u64::from(settings.life) << 32,
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
            Input::End(end) => self.heard_of_end(end),
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

    /// Whether nobody waits for anything of it, and no record of its own may still count: it may end.
    pub fn may_end(&self) -> bool {
        let claims = |candidate: &Candidate| candidate.in_flight.is_some();
        self.leading
            .as_ref()
            .is_none_or(|leading| !leading.serves() && leading.is_idle())
            && !self.candidate.as_ref().is_some_and(claims)
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
