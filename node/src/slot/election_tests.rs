use kvcluster_crds::{Epoch, Offset};

use super::*;

const NOW: u64 = 10_000 * MS;

fn peer(node: u32) -> PeerHint {
    PeerHint {
        node: NodeId(node),
        incarnation: Some(Incarnation(u64::from(node))),
        alive: true,
        can_lead: true,
        serves: true,
    }
}

fn hints() -> Hints {
    Hints {
        voters: vec![NodeId(0), NodeId(1), NodeId(2)],
        preferred: Some(NodeId(2)),
        peers: vec![peer(1), peer(2)],
        heartbeats_return: true,
        memory_to_spare: true,
    }
}

fn led_by(node: u32) -> SlotPosition {
    SlotPosition {
        epoch: Epoch(4),
        leader: Some((NodeId(node), Incarnation(u64::from(node)))),
        last_leader_offset: Some(Offset(9)),
        lease_ms: 600,
        ..SlotPosition::start()
    }
}

const ME: Myself = Myself {
    node: NodeId(0),
    incarnation: Incarnation(100),
    stepped_down: false,
    leader_read_at_ns: NOW,
};

const AFTER_LEASE: Vacancy = Vacancy::Open {
    from_ns: NOW + 600 * MS,
};

#[test]
fn a_slot_without_a_leader_is_open_at_once() {
    assert_eq!(
        vacancy(&SlotPosition::start(), &ME, &hints()),
        Vacancy::Open { from_ns: 0 }
    );
}

#[test]
fn a_leader_that_is_heard_of_is_left_alone() {
    assert_eq!(vacancy(&led_by(1), &ME, &hints()), Vacancy::None);
}

#[test]
fn a_dead_or_restarted_leader_leaves_the_slot_open_after_its_lease() {
    let mut silent = hints();
    silent.peers[0].alive = false;
    assert_eq!(vacancy(&led_by(1), &ME, &silent), AFTER_LEASE);
    let mut restarted = hints();
    restarted.peers[0].incarnation = Some(Incarnation(55));
    assert_eq!(vacancy(&led_by(1), &ME, &restarted), AFTER_LEASE);
    // This node led in an earlier process.
    assert_eq!(vacancy(&led_by(0), &ME, &hints()), AFTER_LEASE);
}

#[test]
fn a_leader_that_stepped_down_may_claim_again_after_its_lease() {
    let mut position = led_by(0);
    position.leader = Some((ME.node, ME.incarnation));
    assert_eq!(vacancy(&position, &ME, &hints()), Vacancy::None);
    let me = Myself {
        stepped_down: true,
        ..ME
    };
    assert_eq!(vacancy(&position, &me, &hints()), AFTER_LEASE);
}

#[test]
fn a_leader_that_does_not_serve_is_given_time() {
    let mut idle = hints();
    idle.peers[0].serves = false;
    let from_ns = NOW + NOT_SERVING_AFTER_NS;
    assert_eq!(vacancy(&led_by(1), &ME, &idle), Vacancy::Open { from_ns });
}

#[test]
fn the_node_that_a_release_names_claims_at_once_and_others_wait() {
    let mut position = led_by(1);
    position.released_to = Some(NodeId(0));
    assert_eq!(vacancy(&position, &ME, &hints()), Vacancy::Mine);
    position.released_to = Some(NodeId(2));
    assert_eq!(vacancy(&position, &ME, &hints()), AFTER_LEASE);
}

#[test]
fn ranks_count_only_those_that_live() {
    assert_eq!(
        rank(NodeId(0), &hints()),
        Some(1),
        "behind the preferred leader"
    );
    let mut alone = hints();
    alone.peers[1].alive = false;
    assert_eq!(rank(NodeId(0), &alone), Some(0));
    assert_eq!(rank(NodeId(7), &hints()), None);
}

#[test]
fn the_successor_is_the_preferred_leader_or_the_next_healthy_voter() {
    assert_eq!(successor(NodeId(0), &hints()), Some(NodeId(2)));
    let mut away = hints();
    away.peers[1].alive = false;
    assert_eq!(successor(NodeId(0), &away), Some(NodeId(1)));
    away.peers[0].can_lead = false;
    assert_eq!(successor(NodeId(0), &away), None);
    assert_eq!(
        successor(NodeId(2), &hints()),
        Some(NodeId(1)),
        "node 0 was never heard of"
    );
}
