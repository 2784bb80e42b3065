//! Which records of a slot's log count. Pure; every replica judges every record once, in order of offsets, and alike.
//!
//! A claim of the next epoch counts iff it builds on the last valid record of the current leader, or that leader's release
//! names the claimant. Any other record counts iff it is the current leader's next one and no release stands before it.
//! So of two claimants exactly one wins, and nothing counts that builds on a record that was lost or came too late.

use kvcluster_crds::{Epoch, Incarnation, LogId, NodeId, Offset};

use crate::effect::SlotPosition;
use crate::log::codec::{Body, Entry};
use crate::seeded::{self, Bug};

/// Whether a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Valid,
    /// It is as if it were not there.
    Ignored(Ignored),
}

/// Why a record does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Some other program's.
    Foreign,
    /// Meant for another life of the log.
    OtherLog,
    /// A claim of an epoch that is not the next one.
    ClaimEpoch,
    /// A claim that does not build on the leader's last valid record: the leader was heard of since, or another claim won.
    ClaimBase,
    /// Not of the current epoch and process.
    Author,
    /// Not the next number: a record before it was lost.
    Sequence,
    /// The leader has released the slot before.
    Released,
}

/// Judges the record at `offset` and moves `position` behind it. `checksum` is of the record's bytes. Offsets between
/// `position.next_offset` and `offset` hold no records (Kafka's own markers).
pub fn judge(
    position: &mut SlotPosition,
    log_id: LogId,
    offset: Offset,
    entry: &Entry,
    checksum: u64,
) -> Verdict {
    assert!(
        offset >= position.next_offset,
        "an offset is judged once and in order"
    );
    position.next_offset = offset.next();
    position.checksum_before = Some(checksum);
    position.whole_at = position.whole_at.filter(|at| position.next_offset < *at);
    let record = match entry {
        Entry::Foreign => return Verdict::Ignored(Ignored::Foreign),
        Entry::Ours(record) => record,
    };
    if record.log_id != log_id {
        return Verdict::Ignored(Ignored::OtherLog);
    }
    let answer = match record.body {
        Body::Claim {
            epoch,
            node,
            incarnation,
            based_on,
            lease_ms,
        } => {
            let claim = Claim {
                epoch,
                node,
                incarnation,
                based_on,
                lease_ms,
            };
            judge_claim(position, offset, &claim)
        }
        Body::Command {
            epoch,
            incarnation,
            seq,
            time_ms,
            ..
        } => judge_next(position, offset, epoch, incarnation, seq)
            .map(|()| position.time_ms = position.time_ms.max(time_ms)),
        Body::Renew {
            epoch,
            incarnation,
            seq,
        } => judge_next(position, offset, epoch, incarnation, seq),
        Body::Release {
            epoch,
            incarnation,
            seq,
            to,
        } => judge_next(position, offset, epoch, incarnation, seq)
            .map(|()| position.released_to = Some(to)),
    };
    answer.map_or_else(Verdict::Ignored, |()| Verdict::Valid)
}

struct Claim {
    epoch: Epoch,
    node: NodeId,
    incarnation: Incarnation,
    based_on: Option<Offset>,
    lease_ms: u32,
}

fn judge_claim(position: &mut SlotPosition, offset: Offset, claim: &Claim) -> Result<(), Ignored> {
    if claim.epoch != position.epoch.next() {
        return Err(Ignored::ClaimEpoch);
    }
    let named = position.released_to == Some(claim.node);
    let builds_on_last = claim.based_on == position.last_leader_offset;
    if !named && !builds_on_last && !seeded::on(Bug::BaseUnchecked) {
        return Err(Ignored::ClaimBase);
    }
    position.epoch = claim.epoch;
    position.leader = Some((claim.node, claim.incarnation));
    position.last_leader_offset = Some(offset);
    position.last_seq = 0;
    position.released_to = None;
    position.lease_ms = claim.lease_ms;
    Ok(())
}

fn judge_next(
    position: &mut SlotPosition,
    offset: Offset,
    epoch: Epoch,
    incarnation: Incarnation,
    seq: u64,
) -> Result<(), Ignored> {
    let current = position
        .leader
        .map(|(_, incarnation)| (position.epoch, incarnation));
    if current != Some((epoch, incarnation)) {
        if seeded::on(Bug::EpochUnchecked) {
            return Ok(());
        }
        return Err(Ignored::Author);
    }
    if position.released_to.is_some() {
        return Err(Ignored::Released);
    }
    let is_next = position.last_seq.checked_add(1) == Some(seq);
    if !is_next && !seeded::on(Bug::SequenceUnchecked) {
        return Err(Ignored::Sequence);
    }
    position.last_leader_offset = Some(offset);
    position.last_seq = seq;
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a test are small"
)]
#[path = "protocol_tests.rs"]
mod tests;
