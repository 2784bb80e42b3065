//! Which records of a slot's log count, stated a second time and straight from the protocol's words. The checks judge the
//! product by this and not by its own judge, so that they do not share its mistakes.

use bytes::Bytes;
use kvcluster_crds::{LogId, Offset};
use kvcluster_node::effect::SlotPosition;
use kvcluster_node::log::codec::{Body, Entry, Record, checksum};

/// The one history that a log tells, up to some offset.
#[derive(Clone, Debug)]
pub struct Rule {
    log: LogId,
    position: SlotPosition,
}

impl Rule {
    /// Before the first record of a log.
    pub fn new(log: LogId) -> Self {
        Self {
            log,
            position: SlotPosition::start(),
        }
    }

    /// Where every replica stands that has judged the log so far.
    pub fn position(&self) -> &SlotPosition {
        &self.position
    }

    /// Takes the next record; answers it if it counts.
    pub fn take(&mut self, offset: Offset, bytes: &Bytes) -> Option<Record> {
        assert!(offset >= self.position.next_offset, "in order");
        self.position.next_offset = offset.next();
        self.position.checksum_before = Some(checksum(bytes));
        let entry = Entry::read(bytes).expect("what is written can be read");
        let Entry::Ours(record) = entry else {
            return None;
        };
        (record.log_id == self.log && self.counts(&record.body)).then(|| {
            self.count(offset, &record.body);
            record
        })
    }

    fn counts(&self, body: &Body) -> bool {
        let at = &self.position;
        match *body {
            Body::Claim {
                epoch,
                node,
                based_on,
                ..
            } => {
                let named = at.released_to == Some(node);
                epoch.0 == at.epoch.0 + 1 && (named || based_on == at.last_leader_offset)
            }
            Body::Command {
                epoch,
                incarnation,
                seq,
                ..
            }
            | Body::Renew {
                epoch,
                incarnation,
                seq,
            }
            | Body::Release {
                epoch,
                incarnation,
                seq,
                ..
            } => {
                let leads = at.leader.is_some_and(|(_, process)| process == incarnation);
                let is_next = seq == at.last_seq + 1;
                leads && epoch == at.epoch && is_next && at.released_to.is_none()
            }
        }
    }

    fn count(&mut self, offset: Offset, body: &Body) {
        let at = &mut self.position;
        at.last_leader_offset = Some(offset);
        match *body {
            Body::Claim {
                epoch,
                node,
                incarnation,
                lease_ms,
                ..
            } => {
                at.epoch = epoch;
                at.leader = Some((node, incarnation));
                at.last_seq = 0;
                at.released_to = None;
                at.lease_ms = lease_ms;
            }
            Body::Command { seq, time_ms, .. } => {
                at.last_seq = seq;
                if time_ms > at.time_ms {
                    at.time_ms = time_ms;
                }
            }
            Body::Renew { seq, .. } => at.last_seq = seq,
            Body::Release { seq, to, .. } => {
                at.last_seq = seq;
                at.released_to = Some(to);
            }
        }
    }
}
