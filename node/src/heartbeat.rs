//! Heartbeats: every node tells through a topic that it lives and what it could do; silence makes it suspected.
//!
//! A leader says as well how far its slots were acknowledged at a moment of its wall clock. A replica that has applied so much
//! knows how old its state is at most: that is freshness, and no safety rests on it.
//!
//! Only hints come from here. A node trusts the silence of others only while its own heartbeats come back: else it is the
//! one that is cut off. After a time without its own it gives everybody a whole suspicion time again.

use std::collections::{BTreeMap, VecDeque};

use kvcluster_crds::{Incarnation, LogId, NodeId, Offset, SlotId};
use serde::{Deserialize, Serialize};

use crate::slot::lease::MS;

/// So much of what each node said of how far slots were acknowledged is kept: about a second of heartbeats.
const SAID_KEPT: usize = 8;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// The log that it follows: those of another cluster's life do not count.
    pub log_id: LogId,
    /// The node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// When it was sent, by the sender's clock; only the sender makes use of it.
    pub sent_ns: u64,
    /// Slots that it could lead.
    pub can_lead: SlotSet,
    /// Slots that it leads and serves.
    pub serves: SlotSet,
    /// How far the slots that it surely leads were acknowledged; none when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledged>,
}

/// How far slots were acknowledged: a replica that has applied all before the offset given for its slot lacks nothing that was
/// acknowledged before the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledged {
    /// The moment, milliseconds since 1970 by the leader's wall clock.
    pub wall_ms: u64,
    slots: SlotSet,
    /// The next offset of each of the slots, in their order. Plain numbers: about ten kilobytes in the heartbeats of all nodes
    /// together for 1,024 slots.
    next: Vec<Offset>,
}

impl Acknowledged {
    /// Of slots in order, each with its own moment; the earliest of these holds for all. None of none.
    pub fn new(stamps: impl IntoIterator<Item = (SlotId, u64, Offset)>) -> Option<Self> {
        let (mut wall_ms, mut slots, mut next) = (None::<u64>, Vec::new(), Vec::new());
        for (slot, at_ms, offset) in stamps {
            wall_ms = Some(wall_ms.map_or(at_ms, |earliest| earliest.min(at_ms)));
            slots.push(slot);
            next.push(offset);
        }
        let slots = slots.into_iter().collect();
        wall_ms.map(|wall_ms| Self {
            wall_ms,
            slots,
            next,
        })
    }

    /// The next offset of `slot`.
    pub fn next(&self, slot: SlotId) -> Option<Offset> {
        self.next.get(self.slots.place_of(slot)?).copied()
    }
}

/// A set of slots, as the hexadecimal digits of a bitmap: small beside the record that carries it, also for 1,024 slots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotSet(String);

impl FromIterator<SlotId> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotId>>(slots: I) -> Self {
        let mut digits: Vec<u32> = Vec::new();
        for slot in slots {
            let place = slot.index() / 4;
            if digits.len() <= place {
                digits.resize(place + 1, 0);
            }
            digits[place] |= 1 << (slot.0 % 4);
        }
        Self(
            digits
                .into_iter()
                .filter_map(|digit| char::from_digit(digit, 16))
                .collect(),
        )
    }
}

impl SlotSet {
    /// Whether the set has `slot`.
    pub fn contains(&self, slot: SlotId) -> bool {
        let digit = self.0.as_bytes().get(slot.index() / 4);
        digit.is_some_and(|digit| bits_of(*digit) & (1 << (slot.0 % 4)) != 0)
    }

    /// How many slots of the set stand before `slot`; none when it is not in the set.
    fn place_of(&self, slot: SlotId) -> Option<usize> {
        if !self.contains(slot) {
            return None;
        }
        let (before, from) = self.0.as_bytes().split_at(slot.index() / 4);
        let whole: u32 = before
            .iter()
            .map(|digit| bits_of(*digit).count_ones())
            .sum();
        let lower = bits_of(from[0]) & ((1 << (slot.0 % 4)) - 1);
        usize::try_from(whole + lower.count_ones()).ok()
    }
}

/// The bits of a hexadecimal digit; what is no digit has none.
fn bits_of(digit: u8) -> u32 {
    char::from(digit).to_digit(16).unwrap_or(0)
}

impl Heartbeat {
    /// The record for the heartbeat topic.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a heartbeat has only keys that are text")
    }

    /// The heartbeat in a record; none when it is something else.
    pub fn decode(record: &[u8]) -> Option<Self> {
        serde_json::from_slice(record).ok()
    }
}

/// What is known of the nodes from their heartbeats. Times are nanoseconds of this node's clock.
#[derive(Debug)]
pub struct Peers {
    log_id: LogId,
    node: NodeId,
    incarnation: Incarnation,
    suspicion_ns: u64,
    own_sent_ns: Option<u64>,
    listening_since_ns: Option<u64>,
    heard: BTreeMap<NodeId, Heard>,
}

#[derive(Debug)]
struct Heard {
    at_ns: u64,
    heartbeat: Heartbeat,
    /// What it said lately of how far slots were acknowledged, the newest first: it stays true when the node is not sure for a
    /// moment whether it still leads.
    said: VecDeque<Acknowledged>,
}

impl Peers {
    /// Nobody was heard yet.
    pub fn new(log_id: LogId, node: NodeId, incarnation: Incarnation, suspicion_ms: u32) -> Self {
        Self {
            log_id,
            node,
            incarnation,
            suspicion_ns: u64::from(suspicion_ms) * MS,
            own_sent_ns: None,
            listening_since_ns: None,
            heard: BTreeMap::new(),
        }
    }

    /// Takes a heartbeat that was read at `now_ns`.
    pub fn observe(&mut self, now_ns: u64, heartbeat: Heartbeat) {
        if heartbeat.log_id != self.log_id {
            return;
        }
        if heartbeat.node == self.node {
            if heartbeat.incarnation == self.incarnation {
                if !self.own_return(now_ns) {
                    self.listening_since_ns = Some(now_ns);
                }
                self.own_sent_ns = self.own_sent_ns.max(Some(heartbeat.sent_ns));
            }
            return;
        }
        let before = self.heard.remove(&heartbeat.node);
        let mut said = before.map_or_else(VecDeque::new, |heard| heard.said);
        if let Some(newest) = &heartbeat.acknowledged {
            said.truncate(SAID_KEPT - 1);
            said.push_front(newest.clone());
        }
        let heard = Heard {
            at_ns: now_ns,
            heartbeat,
            said,
        };
        self.heard.insert(heard.heartbeat.node, heard);
    }

    /// Whether the own heartbeats come back: the newest that did was sent within the suspicion time.
    pub fn own_return(&self, now_ns: u64) -> bool {
        self.own_sent_ns
            .is_some_and(|sent_ns| now_ns.saturating_sub(sent_ns) <= self.suspicion_ns)
    }

    /// Whether `node` is not suspected: heard of within the suspicion time, or not listened to for so long yet.
    pub fn alive(&self, now_ns: u64, node: NodeId) -> bool {
        let heard_ns = self.heard.get(&node).map(|heard| heard.at_ns);
        let from_ns = heard_ns.max(self.listening_since_ns);
        from_ns.is_some_and(|from_ns| now_ns.saturating_sub(from_ns) <= self.suspicion_ns)
    }

    /// The process of `node` that was heard last.
    pub fn incarnation(&self, node: NodeId) -> Option<Incarnation> {
        self.heard
            .get(&node)
            .map(|heard| heard.heartbeat.incarnation)
    }

    /// Whether `node` said last that it could lead `slot`.
    pub fn can_lead(&self, node: NodeId, slot: SlotId) -> bool {
        self.heard
            .get(&node)
            .is_some_and(|heard| heard.heartbeat.can_lead.contains(slot))
    }

    /// Whether `node` said last that it serves `slot`.
    pub fn serves(&self, node: NodeId, slot: SlotId) -> bool {
        self.heard
            .get(&node)
            .is_some_and(|heard| heard.heartbeat.serves.contains(slot))
    }

    /// The least that a replica of `slot` must have applied to lack nothing that was acknowledged before `since_ms` of the wall
    /// clock, by what other nodes said: the next offset. What was said before the newest will do as long as it is fresh enough, so a
    /// replica that is a moment behind need not wait.
    pub fn acknowledged(&self, slot: SlotId, since_ms: u64) -> Option<Offset> {
        let said = self.heard.values().flat_map(|heard| &heard.said);
        let fresh = said.filter(|said| said.wall_ms >= since_ms);
        fresh.filter_map(|said| said.next(slot)).min()
    }

    /// A node, not this one, that serves `slot` by what it said last, and is not suspected.
    pub fn server_of(&self, now_ns: u64, slot: SlotId) -> Option<NodeId> {
        let fresh = |heard: &Heard| now_ns.saturating_sub(heard.at_ns) <= self.suspicion_ns;
        let mut serving = self.heard.iter().filter(|(_, heard)| fresh(heard));
        serving
            .find(|(_, heard)| heard.heartbeat.serves.contains(slot))
            .map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId(1);
    const SECOND: u64 = 1_000 * MS;

    fn from(node: u32, incarnation: u64, sent_ns: u64) -> Heartbeat {
        Heartbeat {
            log_id: LOG,
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            sent_ns,
            can_lead: [SlotId(1), SlotId(9)].into_iter().collect(),
            serves: SlotSet::default(),
            acknowledged: None,
        }
    }

    fn peers() -> Peers {
        Peers::new(LOG, NodeId(0), Incarnation(10), 600)
    }

    #[test]
    fn sets_of_slots_round_trip() {
        let slots = [0, 1, 3, 4, 31, 1_023].map(SlotId);
        let set: SlotSet = slots.into_iter().collect();
        for slot in (0..2_000).map(SlotId) {
            assert_eq!(set.contains(slot), slots.contains(&slot), "{slot}");
        }
        assert!(
            !SlotSet("zz".to_owned()).contains(SlotId(0)),
            "what is no digit has no slot"
        );
    }

    #[test]
    fn how_far_slots_were_acknowledged_is_found_again() {
        let stamps = [
            (0, 70, 5),
            (1, 60, 0),
            (6, 80, 7),
            (8, 75, 8),
            (1_023, 90, 9),
        ];
        let stamps = stamps.map(|(slot, at_ms, next)| (SlotId(slot), at_ms, Offset(next)));
        let said = Acknowledged::new(stamps).expect("some");
        assert_eq!(said.wall_ms, 60, "what holds for all");
        for slot in (0..1_030).map(SlotId) {
            let expected = stamps.iter().find(|(known, _, _)| *known == slot);
            assert_eq!(
                said.next(slot),
                expected.map(|(_, _, next)| *next),
                "{slot}"
            );
        }
        assert_eq!(Acknowledged::new([]), None);
        let cut = Acknowledged {
            next: vec![Offset(1)],
            ..said
        };
        assert_eq!(
            (cut.next(SlotId(0)), cut.next(SlotId(6))),
            (Some(Offset(1)), None)
        );
    }

    #[test]
    fn what_is_fresh_enough_counts() {
        let mut peers = peers();
        let said = |node, wall_ms, next| Heartbeat {
            acknowledged: Acknowledged::new([(SlotId(5), wall_ms, Offset(next))]),
            ..from(node, 7, 0)
        };
        peers.observe(SECOND, said(1, 1_000, 10));
        peers.observe(SECOND, said(2, 1_200, 8));
        assert_eq!(peers.acknowledged(SlotId(5), 900), Some(Offset(8)));
        assert_eq!(peers.acknowledged(SlotId(5), 1_200), Some(Offset(8)));
        assert_eq!(peers.acknowledged(SlotId(5), 1_201), None);
        assert_eq!(peers.acknowledged(SlotId(4), 900), None);
        // A replica that has what was said first need not wait for what was said since.
        peers.observe(SECOND, said(1, 1_300, 30));
        assert_eq!(peers.acknowledged(SlotId(5), 1_000), Some(Offset(8)));
        assert_eq!(peers.acknowledged(SlotId(5), 1_201), Some(Offset(30)));
        // It does not lead any more, or is not sure of it: what it said is true all the same.
        peers.observe(SECOND, from(2, 7, 0));
        assert_eq!(peers.acknowledged(SlotId(5), 900), Some(Offset(8)));
        // Who says less of it says more of others; what was said long ago is forgotten.
        for beat in 0..SAID_KEPT {
            assert_eq!(peers.acknowledged(SlotId(5), 900), Some(Offset(8)));
            let other = Acknowledged::new([(SlotId(6), 1_300 + beat as u64, Offset(1))]);
            peers.observe(
                SECOND,
                Heartbeat {
                    acknowledged: other,
                    ..from(2, 7, 0)
                },
            );
        }
        assert_eq!(peers.acknowledged(SlotId(5), 900), Some(Offset(10)));
    }

    #[test]
    fn a_heartbeat_for_every_slot_stays_small() {
        let stamps =
            (0..1_024).map(|slot| (SlotId(slot), 1_700_000_000_000, Offset(1_000_000_000)));
        let all = Heartbeat {
            acknowledged: Acknowledged::new(stamps),
            ..from(1, 7, 0)
        };
        let bytes = all.encode().len();
        assert!(bytes < 12_500, "{bytes}");
        assert_eq!(Heartbeat::decode(&all.encode()), Some(all));
    }

    #[test]
    fn heartbeats_round_trip_and_other_records_are_none() {
        let heartbeat = from(3, 4, 5);
        assert_eq!(Heartbeat::decode(&heartbeat.encode()), Some(heartbeat));
        assert_eq!(Heartbeat::decode(b"{}"), None);
        assert_eq!(Heartbeat::decode(b"\xff"), None);
    }

    #[test]
    fn nobody_is_suspected_before_a_whole_suspicion_time_of_listening() {
        let mut peers = peers();
        assert!(
            !peers.alive(SECOND, NodeId(1)),
            "not listening yet: nothing is known"
        );
        assert!(!peers.own_return(SECOND));
        peers.observe(SECOND, from(0, 10, SECOND));
        assert!(peers.own_return(SECOND + 600 * MS));
        assert!(peers.alive(SECOND + 600 * MS, NodeId(1)));
        assert!(!peers.alive(SECOND + 601 * MS, NodeId(1)));
    }

    #[test]
    fn silence_makes_suspected() {
        let mut peers = peers();
        peers.observe(SECOND, from(0, 10, SECOND));
        peers.observe(5 * SECOND, from(1, 7, 0));
        assert!(peers.alive(5 * SECOND + 600 * MS, NodeId(1)));
        assert!(!peers.alive(5 * SECOND + 601 * MS, NodeId(1)));
        assert_eq!(peers.incarnation(NodeId(1)), Some(Incarnation(7)));
        assert!(peers.can_lead(NodeId(1), SlotId(9)) && !peers.can_lead(NodeId(1), SlotId(2)));
    }

    #[test]
    fn who_was_cut_off_gives_everybody_time_again() {
        let mut peers = peers();
        peers.observe(SECOND, from(0, 10, SECOND));
        peers.observe(SECOND, from(1, 7, 0));
        assert!(!peers.alive(9 * SECOND, NodeId(1)));
        assert!(!peers.own_return(9 * SECOND));
        // An own heartbeat that was on its way all the time does not prove that the way is open.
        peers.observe(9 * SECOND, from(0, 10, 2 * SECOND));
        assert!(!peers.own_return(9 * SECOND));
        peers.observe(9 * SECOND, from(0, 10, 9 * SECOND));
        assert!(peers.own_return(9 * SECOND) && peers.alive(9 * SECOND + 500 * MS, NodeId(1)));
        assert!(!peers.alive(9 * SECOND + 601 * MS, NodeId(1)));
    }

    #[test]
    fn an_earlier_process_of_this_node_and_other_logs_do_not_count() {
        let mut peers = peers();
        peers.observe(SECOND, from(0, 9, SECOND));
        assert!(!peers.own_return(SECOND));
        peers.observe(
            SECOND,
            Heartbeat {
                log_id: LogId(2),
                ..from(0, 10, SECOND)
            },
        );
        assert!(!peers.own_return(SECOND));
    }

    #[test]
    fn who_serves_a_slot_is_found_while_it_is_fresh() {
        let mut peers = peers();
        let serving = Heartbeat {
            serves: [SlotId(5)].into_iter().collect(),
            ..from(2, 1, 0)
        };
        peers.observe(SECOND, serving);
        assert_eq!(peers.server_of(SECOND, SlotId(5)), Some(NodeId(2)));
        assert_eq!(peers.server_of(SECOND, SlotId(4)), None);
        assert_eq!(peers.server_of(3 * SECOND, SlotId(5)), None);
    }
}
