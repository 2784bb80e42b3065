//! How fresh slots are: what this node's leaders say of it, and what those of others have said.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use kvcluster_crds::{Offset, SlotId, SlotRole};

use super::Registry;
use crate::heartbeat::Acknowledged;

/// What a replica said longer ago than this is left out, milliseconds: one that is held up must not hold up what is said of
/// the others. Replicas say it anew every few milliseconds.
const STALE_MS: u64 = 1_000;

/// No moment: the replica does not surely lead.
pub(super) const NEVER: u64 = 0;

impl Registry {
    /// How far the slots were acknowledged that are surely led here, for a heartbeat sent at `wall_ms`.
    pub fn own_acknowledged(&self, wall_ms: u64) -> Option<Acknowledged> {
        let slots = (0..self.config.slots).map(SlotId).zip(&self.slots);
        let stamps = slots.filter_map(|(slot, entry)| {
            // The moment first: what is read of the view then is at least as new.
            let at_ms = entry.acknowledged_ms.load(Ordering::SeqCst);
            let known = at_ms != NEVER && at_ms.saturating_add(STALE_MS) >= wall_ms;
            let view = entry.view.lock().unwrap_or_else(PoisonError::into_inner);
            let view = view.as_ref().filter(|view| view.role == SlotRole::Leader);
            known.then(|| Some((slot, at_ms, view?.applied))).flatten()
        });
        Acknowledged::new(stamps)
    }

    /// The next offset at which a replica of `slot` lacks nothing that was acknowledged before `since_ms` of the wall clock.
    pub(super) fn fresh_since(&self, slot: SlotId, since_ms: u64) -> Option<Offset> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        // A clock shows a millisecond that is not over.
        peers.acknowledged(slot, since_ms + 1)
    }
}
