//! How leadership comes to a replica and leaves it: own claims, and releases to others.

use kvcluster_crds::{Epoch, Offset};

use super::dedup::Dedup;
use super::election::{CLAIM_STAGGER_NS, Myself, Vacancy, rank, successor, vacancy};
use super::leading::Leading;
use super::lease::{MS, spread};
use super::{Output, Settings, SlotMachine, Token};
use crate::effect::SlotPosition;
use crate::log::codec::{Body, Entry, Record, checksum};
use crate::seeded::{self, Bug};

/// A leader keeps a slot for so long before it hands it to the preferred leader, nanoseconds: leadership settles first.
pub const HAND_OVER_AFTER_NS: u64 = 3_000 * MS;
/// Slots of a node are handed over one after the other, in these steps, milliseconds, and so many of them.
const HAND_OVER_STEP_MS: u64 = 100;
const HAND_OVER_STEPS: u32 = 32;

/// Own claims of one epoch.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) epoch: Epoch,
    /// When the first of them was sent: the lease, if one of them wins, runs from there.
    pub(super) sent_at_ns: u64,
    /// The one whose fate is not known yet.
    pub(super) in_flight: Option<InFlightClaim>,
}

#[derive(Clone, Debug)]
pub(super) struct InFlightClaim {
    pub(super) token: Token,
    pub(super) entry: Entry,
    pub(super) checksum: u64,
    pub(super) acknowledged: Option<Offset>,
}

impl SlotMachine {
    pub(super) fn lead(&mut self, now_ns: u64, epoch: Epoch) {
        let candidate = self.candidate.take_if(|candidate| candidate.epoch == epoch);
        // Without the time at which it was sent there is no lease: reads then wait for a record.
        let mut sent_at_ns = candidate.map_or(0, |candidate| candidate.sent_at_ns);
        if seeded::on(Bug::LeaseFromReading) {
            sent_at_ns = now_ns;
        }
        if seeded::on(Bug::DedupForgotten) {
            self.dedup = Dedup::default();
        }
        let time_ms = self.position.time_ms;
        let leading = Leading::begin(&self.settings, epoch, sent_at_ns, now_ns, time_ms);
        self.leading = Some(leading);
    }

    /// The candidate stays: another claim of the epoch may be on its way, and the lease runs from the first one.
    pub(super) fn claim_ignored(&mut self, record: &Record) {
        if let Some(candidate) = &mut self.candidate {
            let judged = |claim: &mut InFlightClaim| claim.entry == Entry::Ours(record.clone());
            candidate.in_flight.take_if(judged);
        }
    }

    /// Hands leadership over when the node stops or another should have it.
    pub(super) fn give_away(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        let me = self.settings.node;
        let Some(leading) = self.leading.as_mut().filter(|leading| leading.serves()) else {
            return;
        };
        let leaves = !self.hints.voters.is_empty() && !self.hints.voters.contains(&me);
        if self.stopping || leaves {
            match successor(me, &self.hints) {
                Some(to) => leading.release(to, out),
                None if self.stopping => leading.step_down(out),
                None => {}
            }
            return;
        }
        let wait_ns =
            HAND_OVER_AFTER_NS + spread(self.settings.slot, HAND_OVER_STEP_MS, HAND_OVER_STEPS);
        let preferred = self.hints.preferred.filter(|node| *node != me);
        if let Some(to) = preferred.filter(|node| self.hints.could_lead(*node))
            && now_ns >= leading.led_since_ns + wait_ns
        {
            leading.release(to, out);
        }
    }

    pub(super) fn can_lead(&self) -> bool {
        self.caught_up
            && self.is_whole()
            && self.unverified.is_none()
            && self.frozen.is_none()
            && !self.stopping
            && self.hints.memory_to_spare
    }

    pub(super) fn claim(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        let me = Myself {
            node: self.settings.node,
            incarnation: self.settings.incarnation,
            stepped_down: self
                .leading
                .as_ref()
                .is_none_or(|leading| !leading.serves()),
            leader_read_at_ns: self.leader_read_at_ns,
        };
        let mut position = &self.position;
        let with_own_lease;
        if seeded::on(Bug::OwnLease) {
            with_own_lease = SlotPosition {
                lease_ms: self.settings.lease_ms,
                ..position.clone()
            };
            position = &with_own_lease;
        }
        let from_ns = match vacancy(position, &me, &self.hints) {
            Vacancy::None => {
                self.vacant_since_ns = None;
                return;
            }
            Vacancy::Mine => now_ns,
            Vacancy::Open { from_ns } => {
                let Some(rank) = rank(me.node, &self.hints) else {
                    return;
                };
                let since_ns = *self.vacant_since_ns.get_or_insert(now_ns);
                from_ns.max(since_ns) + rank * CLAIM_STAGGER_NS
            }
        };
        let waits = self
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.in_flight.is_some());
        let fit =
            self.can_lead() && self.hints.heartbeats_return && self.hints.voters.contains(&me.node);
        if fit && !waits && now_ns >= from_ns {
            self.send_claim(now_ns, out);
        }
    }

    pub(super) fn send_claim(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        let epoch = self.position.epoch.next();
        let Settings {
            log_id,
            node,
            incarnation,
            lease_ms,
            ..
        } = self.settings;
        let based_on = self.position.last_leader_offset;
        let body = Body::Claim {
            epoch,
            node,
            incarnation,
            based_on,
            lease_ms,
        };
        let record = Record { log_id, body };
        let bytes = record.encode();
        let token = Token::next(&mut self.tokens);
        let earlier = self
            .candidate
            .take()
            .filter(|candidate| candidate.epoch == epoch);
        self.candidate = Some(Candidate {
            epoch,
            sent_at_ns: earlier.map_or(now_ns, |candidate| candidate.sent_at_ns),
            in_flight: Some(InFlightClaim {
                token,
                entry: Entry::Ours(record),
                checksum: checksum(&bytes),
                acknowledged: None,
            }),
        });
        out.push(Output::Append { token, bytes });
    }
}
