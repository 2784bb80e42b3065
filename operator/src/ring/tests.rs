//! What every table must hold, whatever the numbers.

use std::collections::{BTreeMap, BTreeSet};

use kvcluster_crds::{NodeId, SlotAssignment};
use proptest::prelude::*;

use super::{Member, RingError, Shape, moves};

fn ids(count: u32) -> Vec<NodeId> {
    (0..count).map(NodeId).collect()
}

fn members(nodes: &[NodeId]) -> Vec<Member> {
    let member = |&id| Member {
        id,
        zone: None,
        instance: "main".to_owned(),
    };
    nodes.iter().map(member).collect()
}

/// The table for nodes that share neither zones nor several instances.
fn propose(
    shape: Shape,
    nodes: &[NodeId],
    published: Option<&[SlotAssignment]>,
) -> Result<Vec<SlotAssignment>, RingError> {
    super::propose(shape, &members(nodes), published).map(|proposal| proposal.slots)
}

fn shape(slots: u32, replication: usize) -> Shape {
    Shape {
        slots,
        replication,
        virtual_nodes: 64,
        load_factor_percent: 125,
    }
}

fn loads(table: &[SlotAssignment]) -> BTreeMap<NodeId, usize> {
    let mut loads = BTreeMap::new();
    for voter in table.iter().flat_map(|slot| &slot.voters) {
        *loads.entry(*voter).or_default() += 1;
    }
    loads
}

fn lead_counts(table: &[SlotAssignment], nodes: &[NodeId]) -> Vec<usize> {
    let count = |node| {
        table
            .iter()
            .filter(|slot| slot.preferred_leader == node)
            .count()
    };
    nodes.iter().map(|&node| count(node)).collect()
}

fn assert_sound(shape: Shape, nodes: &[NodeId], table: &[SlotAssignment]) {
    assert_eq!(table.len(), shape.slots as usize);
    for slot in table {
        let distinct: BTreeSet<_> = slot.voters.iter().collect();
        assert_eq!(
            distinct.len(),
            shape.replication,
            "distinct voters in {slot:?}"
        );
        assert_eq!(slot.voters.len(), shape.replication);
        assert_eq!(slot.voters[0], slot.preferred_leader);
        assert!(slot.voters.iter().all(|voter| nodes.contains(voter)));
    }
    let bound = shape.load_bound(nodes.len());
    for (node, load) in loads(table) {
        assert!(
            load <= bound,
            "node {node} holds {load} replicas, the bound is {bound}"
        );
    }
}

/// Replicas that have to move because the load bound is lower with more nodes, where there are hardly more replicas than
/// nodes: from 2 to 1, for example.
fn moves_forced(shape: Shape, before: &[SlotAssignment], nodes_after: usize) -> usize {
    let bound = shape.load_bound(nodes_after);
    let above = loads(before)
        .into_values()
        .map(|load| load.saturating_sub(bound));
    above.sum()
}

/// Replicas that may move when a node joins N: an even share of the new node plus 5 % of all, and never less than one.
fn moves_allowed(shape: Shape, nodes_before: usize) -> usize {
    let replicas = shape.slots as usize * shape.replication;
    replicas.div_ceil(nodes_before + 1) + replicas * 5 / 100
}

prop_compose! {
    fn any_shape()(
        slots in 1_u32..300,
        nodes in 1_u32..20,
        replication in 1_usize..=7,
        virtual_nodes in 1_u32..128,
        load_factor_percent in 100_u32..300,
    ) -> (Shape, u32) {
        let replication = replication.min(nodes as usize);
        (Shape { slots, replication, virtual_nodes, load_factor_percent }, nodes)
    }
}

proptest! {
    #[test]
    fn voters_are_distinct_and_loads_bounded((shape, nodes) in any_shape()) {
        let nodes = ids(nodes);
        let table = propose(shape, &nodes, None).unwrap();
        assert_sound(shape, &nodes, &table);
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter((shape, nodes) in any_shape(), turn in 0_usize..20) {
        let nodes = ids(nodes);
        let mut other = nodes.clone();
        other.rotate_left(turn % nodes.len());
        other.reverse();
        prop_assert_eq!(propose(shape, &nodes, None), propose(shape, &other, None));
    }

    #[test]
    fn a_table_in_order_is_kept((shape, nodes) in any_shape()) {
        let nodes = ids(nodes);
        let table = propose(shape, &nodes, None).unwrap();
        let again = propose(shape, &nodes, Some(&table)).unwrap();
        prop_assert_eq!(table, again);
    }

    #[test]
    fn a_node_that_joins_takes_its_share_and_little_more_moves((shape, nodes) in any_shape()) {
        let before = propose(shape, &ids(nodes), None).unwrap();
        let joined = ids(nodes + 1);
        let after = propose(shape, &joined, Some(&before)).unwrap();
        assert_sound(shape, &joined, &after);
        let forced = moves_forced(shape, &before, joined.len());
        let allowed = moves_allowed(shape, nodes as usize).max(forced);
        let moved = moves(&before, &after);
        prop_assert!(moved <= allowed, "{} replicas moved, {} are allowed", moved, allowed);
        let share = shape.slots as usize * shape.replication / joined.len();
        let got = loads(&after).get(&NodeId(nodes)).copied().unwrap_or(0);
        prop_assert!(got + 1 >= share, "the new node got {} of {}", got, share);
    }

    #[test]
    fn a_node_that_leaves_takes_only_its_own_along((shape, nodes) in any_shape(), gone in 0_u32..20) {
        // One more than any shape has replicas: an assumption here would use up what proptest may throw away.
        let nodes = nodes + 1;
        let before = propose(shape, &ids(nodes), None).unwrap();
        let left: Vec<_> = ids(nodes).into_iter().filter(|n| n.get() != gone % nodes).collect();
        let after = propose(shape, &left, Some(&before)).unwrap();
        assert_sound(shape, &left, &after);
        // Each lost replica is put elsewhere; where all nodes with room hold its slot already, another one makes room.
        let lost = loads(&before).get(&NodeId(gone % nodes)).copied().unwrap_or(0);
        prop_assert!(moves(&before, &after) <= 2 * lost, "{} moved, {} lost", moves(&before, &after), lost);
    }

    #[test]
    fn leaders_are_even_when_every_node_votes(slots in 1_u32..300, nodes in 1_u32..=7) {
        let nodes = ids(nodes);
        let table = propose(shape(slots, nodes.len()), &nodes, None).unwrap();
        let counts = lead_counts(&table, &nodes);
        let (most, fewest) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
        prop_assert!(most - fewest <= 1, "{:?}", counts);
    }
}

#[test]
fn leaders_are_spread_when_slots_have_different_voters() {
    for nodes in [4, 5, 7, 12] {
        let table = propose(shape(128, 3), &ids(nodes), None).unwrap();
        let counts = lead_counts(&table, &ids(nodes));
        let even = 128_usize.div_ceil(nodes as usize);
        assert!(
            counts.iter().all(|&count| count <= even + 1),
            "{nodes} nodes: {counts:?}"
        );
    }
}

#[test]
fn too_few_nodes_are_refused() {
    let answer = propose(shape(16, 3), &ids(2), None);
    assert_eq!(
        answer,
        Err(RingError::TooFewNodes {
            nodes: 2,
            replication: 3
        })
    );
}

#[test]
fn a_node_named_twice_counts_once() {
    let answer = propose(shape(16, 3), &[NodeId(0), NodeId(0), NodeId(1)], None);
    assert_eq!(
        answer,
        Err(RingError::TooFewNodes {
            nodes: 2,
            replication: 3
        })
    );
}

/// The table of the sample cluster never changes between versions of the operator: nodes would move data for nothing.
#[test]
fn golden_table() {
    let small = Shape {
        slots: 4,
        replication: 2,
        virtual_nodes: 64,
        load_factor_percent: 125,
    };
    let table = propose(small, &ids(4), None).unwrap();
    let voters: Vec<Vec<u32>> = table
        .iter()
        .map(|slot| slot.voters.iter().map(|n| n.get()).collect())
        .collect();
    insta::assert_yaml_snapshot!(voters);
}

/// Measures what the module promises; printed with `--nocapture`.
#[test]
fn share_that_moves_when_a_node_joins() {
    for (slots, nodes) in [(16, 3), (64, 3), (64, 5), (128, 9)] {
        let before = propose(shape(slots, 3), &ids(nodes), None).unwrap();
        let after = propose(shape(slots, 3), &ids(nodes + 1), Some(&before)).unwrap();
        let replicas = slots * 3;
        let moved = u32::try_from(moves(&before, &after)).unwrap();
        println!(
            "{slots} slots, {nodes} + 1 nodes: {moved} of {replicas} replicas move ({:.1} %; even share {:.1} %)",
            f64::from(moved) * 100.0 / f64::from(replicas),
            100.0 / f64::from(nodes + 1)
        );
        assert!(moved * (nodes + 1) * 100 <= replicas * (100 + 5 * (nodes + 1)));
    }
}

#[test]
fn a_lower_bound_moves_what_is_above_it_and_nothing_else() {
    let shape = Shape {
        slots: 5,
        replication: 2,
        virtual_nodes: 1,
        load_factor_percent: 141,
    };
    let before = propose(shape, &ids(14), None).unwrap();
    let after = propose(shape, &ids(15), Some(&before)).unwrap();
    assert_eq!((shape.load_bound(14), shape.load_bound(15)), (2, 1));
    assert_sound(shape, &ids(15), &after);
    assert_eq!(moves(&before, &after), moves_forced(shape, &before, 15));
}

/// Nodes `0..zones.len()`, each in the zone, and on the instance, of that number.
fn placed(zones: &[usize], instances: &[usize]) -> Vec<Member> {
    let member = |(id, (zone, instance)): (usize, (&usize, &usize))| Member {
        id: NodeId(u32::try_from(id).expect("few nodes")),
        zone: Some(format!("zone-{zone}")),
        instance: format!("db-{instance}"),
    };
    let places = zones.iter().zip(instances).enumerate();
    places.map(member).collect()
}

fn distinct<'a>(
    members: &'a [Member],
    slot: &SlotAssignment,
    group: impl Fn(&'a Member) -> &'a str,
) -> usize {
    let voters = members
        .iter()
        .filter(|member| slot.voters.contains(&member.id));
    voters.map(group).collect::<BTreeSet<_>>().len()
}

/// Whether every slot can have voters in as many groups as there are, or as it has voters, with nobody above the load bound.
fn can_be_spread(shape: Shape, groups: &[usize]) -> bool {
    let bound = shape.load_bound(groups.len());
    let slots = shape.slots as usize;
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for group in groups {
        *sizes.entry(*group).or_default() += 1;
    }
    let wanted = shape.replication.min(sizes.len());
    let room: usize = sizes.values().map(|nodes| slots.min(nodes * bound)).sum();
    room >= slots * wanted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn zones_and_instances_are_respected_where_they_can_be(
        (shape, _) in any_shape(),
        places in prop::collection::vec((0_usize..4, 0_usize..3), 7..14),
        by_zone in any::<bool>(),
    ) {
        let shape = Shape { slots: shape.slots % 48 + 1, virtual_nodes: 16, ..shape };
        let (mut zones, mut instances): (Vec<_>, Vec<_>) = places.into_iter().unzip();
        // One kind of group at a time: with both, instances come first.
        let groups = if by_zone {
            instances.fill(0);
            &zones
        } else {
            zones.fill(0);
            &instances
        };
        let all = placed(&zones, &instances);
        let group = |member: &'static Member| if by_zone { member.zone.as_deref().expect("it has one") } else { &member.instance };
        let all: &'static [Member] = Box::leak(all.into_boxed_slice());
        let mut before = None;
        for count in [groups.len(), groups.len() - 1] {
            let here = &all[..count];
            if shape.replication > count || !can_be_spread(shape, &groups[..count]) {
                continue;
            }
            let wanted = shape.replication.min(here.iter().map(group).collect::<BTreeSet<_>>().len());
            let table = super::propose(shape, here, before.as_deref()).unwrap().slots;
            assert_sound(shape, &here.iter().map(|m| m.id).collect::<Vec<_>>(), &table);
            for slot in &table {
                prop_assert_eq!(distinct(here, slot, group), wanted, "{:?}", slot);
            }
            before = Some(table);
        }
    }
}

#[test]
fn slots_whose_voters_share_an_instance_are_named() {
    let two = placed(&[0, 0, 0, 0], &[0, 1, 0, 1]);
    let pairs = super::propose(shape(8, 2), &two, None).unwrap().slots;
    assert!(super::slots_on_one_instance(&two, &pairs).is_empty());
    let triples = super::propose(shape(8, 3), &two, None).unwrap().slots;
    assert_eq!(super::slots_on_one_instance(&two, &triples).len(), 8);
}

/// A pod that starts anew has no zone for a moment: nothing moves for that.
#[test]
fn a_zone_that_is_not_known_for_a_moment_moves_nothing() {
    let mut members = placed(&[0, 0, 1, 1, 2, 2], &[0; 6]);
    let table = super::propose(shape(32, 3), &members, None).unwrap().slots;
    members[4].zone = None;
    let again = super::propose(shape(32, 3), &members, Some(&table))
        .unwrap()
        .slots;
    assert_eq!(table, again);
}
