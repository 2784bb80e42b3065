//! What must hold after a run: the answers fit one order for each key, every store holds what the log says, and nothing else.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvcluster_crds::SlotId;
use kvcluster_node::effect::{Effect, SlotPosition, Versioned};
use kvcluster_node::log::codec::{Body, Entry};
use kvcluster_sim::rule::Rule;
use kvcluster_sim::store::Restores;
use kvcluster_suite::history::linear::{self, Verdict};
use kvcluster_suite::history::resolve::{Change, resolve};
use kvcluster_suite::history::{Action, End, Ended, pair};
use xxhash_rust::xxh3::Xxh3;

use crate::node::{self, LOG};
use crate::seen::Point;
use crate::world::World;

/// The one history that the logs tell.
#[derive(Default)]
struct Truth {
    changes: Vec<Change>,
    rows: BTreeMap<(SlotId, Bytes), Versioned>,
    positions: BTreeMap<SlotId, SlotPosition>,
}

/// Says what is wrong.
pub(crate) fn check(world: &World) -> Result<(), String> {
    let truth = truth(world);
    note_restores(world);
    for (number, schema) in world.services.schemas.iter().enumerate() {
        let tables = schema.tables();
        if tables.slots != truth.positions {
            let (found, right) = (tables.slots, &truth.positions);
            return Err(format!(
                "node {number} stands at {found:?} instead of {right:?}"
            ));
        }
        if tables.rows != truth.rows {
            let (found, right) = (tables.rows, &truth.rows);
            return Err(format!(
                "node {number} holds {found:?} instead of {right:?}"
            ));
        }
    }
    let paired = pair(&world.history.events()).map_err(|error| error.to_string())?;
    note_unknown(world, &paired, &truth);
    let operations = resolve(&paired, &truth.changes).map_err(|error| format!("{error:#}"))?;
    for (key, verdict) in linear::check(&operations) {
        if verdict != Verdict::Linearizable {
            return Err(format!(
                "the history of {key} is not linearizable: {verdict:?}"
            ));
        }
    }
    Ok(())
}

/// Notes what became of the snapshots that were taken.
fn note_restores(world: &World) {
    for schema in world.services.schemas.iter() {
        let Restores {
            whole,
            joined,
            broken,
        } = schema.restores();
        world.seen.reach_times(Point::SlotRestored, whole);
        world.seen.reach_times(Point::RestoredFromTwoCuts, joined);
        world.seen.reach_times(Point::SnapshotBrokenOff, broken);
    }
}

/// Judges every log once more, by a judge that shares nothing with the product.
fn truth(world: &World) -> Truth {
    let mut truth = Truth::default();
    for slot in node::slots() {
        let mut rule = Rule::new(LOG);
        for (offset, bytes) in world.services.broker.records(slot) {
            let is_ours = matches!(Entry::read(&bytes), Ok(Entry::Ours(_)));
            match rule.take(offset, &bytes).map(|record| record.body) {
                None if is_ours => world.seen.reach(Point::RecordIgnored),
                Some(Body::Release { .. }) => world.seen.reach(Point::HandedOver),
                Some(Body::Command { effects, .. }) => {
                    for effect in effects {
                        truth.apply(slot, offset.0, effect);
                    }
                }
                _ => {}
            }
        }
        if rule.position().epoch.0 >= 4 {
            world.seen.reach(Point::SeveralEpochs);
        }
        truth.positions.insert(slot, rule.position().clone());
    }
    truth
}

impl Truth {
    fn apply(&mut self, slot: SlotId, offset: i64, effect: Effect) {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let mut change = Change {
            partition: slot.0,
            offset,
            key: text(effect.key()),
            value: None,
        };
        match effect {
            Effect::Put { key, value } => {
                change.value = Some(text(&value));
                let version = kvcluster_crds::Offset(offset);
                self.rows.insert((slot, key), Versioned { value, version });
            }
            Effect::Delete { key } => {
                self.rows.remove(&(slot, key));
            }
        }
        self.changes.push(change);
    }
}

/// Notes what became of writes whose fate nobody was told.
fn note_unknown(world: &World, operations: &[Ended], truth: &Truth) {
    let unknown = operations.iter().filter_map(|operation| {
        let Action::Put { value, .. } = &operation.action else {
            return None;
        };
        let open = matches!(operation.end, None | Some((_, End::Info)));
        open.then_some(value)
    });
    for value in unknown {
        let mut changes = truth.changes.iter();
        let stands = changes.any(|change| change.value.as_ref() == Some(value));
        world.seen.reach(if stands {
            Point::UnknownWriteStands
        } else {
            Point::UnknownWriteDoesNot
        });
    }
}

/// A number that differs when anything in a run does: what clients saw and when, every record, every row.
pub(crate) fn trace(world: &World) -> u64 {
    let mut hash = Xxh3::new();
    for event in world.history.events() {
        let line = serde_json::to_vec(&event).expect("it is plain data");
        hash.update(&line);
    }
    for slot in node::slots() {
        for (offset, bytes) in world.services.broker.records(slot) {
            hash.update(&offset.0.to_be_bytes());
            hash.update(&bytes);
        }
    }
    for schema in world.services.schemas.iter() {
        hash.update(format!("{:?}", schema.tables()).as_bytes());
    }
    hash.digest()
}
