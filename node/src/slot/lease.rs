//! The arithmetic of leases. Pure; times are nanoseconds of the clock that also counts a suspended machine.
//!
//! A leader's lease runs from the moment *before* its newest valid record was sent, and is 10 % shorter than the epoch's.
//! A rival claims only a whole epoch's lease after it *read* that record, which is later than it was sent. So two clocks may
//! drift apart by 10 % within one lease before a stale read is possible.

use kvcluster_crds::SlotId;

use crate::seeded::{self, Bug};

/// The part of the epoch's lease that the leader uses, percent; the rest is the margin for drifting clocks.
pub const LEASE_USED_PERCENT: u64 = 90;
/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;

/// The end of the lease of a leader whose newest valid record was sent at `sent_at_ns`.
pub fn lease_end(sent_at_ns: u64, lease_ms: u32) -> u64 {
    let used_percent = if seeded::on(Bug::LeaseWithoutMargin) {
        100
    } else {
        LEASE_USED_PERCENT
    };
    sent_at_ns.saturating_add(u64::from(lease_ms) * MS / 100 * used_percent)
}

/// When a rival may claim that read the leader's last valid record at `read_at_ns`.
pub fn claim_from(read_at_ns: u64, lease_ms: u32) -> u64 {
    if seeded::on(Bug::ClaimBeforeLeaseEnds) {
        return read_at_ns;
    }
    read_at_ns.saturating_add(u64::from(lease_ms) * MS)
}

/// When a leader that sends no commands renews ahead, for reads to find the lease unbroken: half of it before its end.
pub fn renew_from(lease_end_ns: u64, lease_ms: u32) -> u64 {
    lease_end_ns.saturating_sub(u64::from(lease_ms) * MS / 2)
}

/// Spreads things that each slot does after a wait, so that not all slots of a node do them at once.
pub fn spread(slot: SlotId, step_ms: u64, steps: u32) -> u64 {
    u64::from(slot.0 % steps) * step_ms * MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_waits_longer_than_the_leader_trusts() {
        for lease_ms in [1, 200, 600, 60_000] {
            assert!(
                lease_end(5, lease_ms) < claim_from(5, lease_ms),
                "{lease_ms}"
            );
            assert!(renew_from(lease_end(5, lease_ms), lease_ms) < lease_end(5, lease_ms));
        }
        assert_eq!(lease_end(0, 600), 540 * MS);
    }

    #[test]
    fn the_drift_that_is_tolerated_is_the_margin() {
        // The leader's clock runs 5 % slow, the rival's 5 % fast, for one lease.
        let trusted_true_ns = lease_end(0, 600) * 100 / 95;
        let claimed_true_ns = claim_from(0, 600) * 100 / 105;
        assert!(trusted_true_ns < claimed_true_ns);
    }
}
