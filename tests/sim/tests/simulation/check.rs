//! What must hold after a run, found by judging the whole log once more, by a judge that shares nothing with the product.

use std::collections::{BTreeMap, BTreeSet};

use kvcluster_crds::Offset;
use kvcluster_node::effect::{Applied, DedupEntry, Effect, Idempotency};
use kvcluster_node::log::codec::Body;
use kvcluster_node::service::SlotError;
use kvcluster_sim::rule::Rule;

use super::Tally;
use super::world::{Kind, LOG, Told, World};

/// The one history that the log tells.
struct Truth {
    applied: BTreeMap<i64, Applied>,
    /// Number of the request → offset.
    writes: BTreeMap<u64, i64>,
    /// Idempotency key → offset.
    keys: BTreeMap<u64, i64>,
    tally: Tally,
}

/// Checks everything; says what is wrong.
pub(crate) fn check(world: &World) -> Result<Tally, String> {
    if let Some(reason) = &world.frozen {
        return Err(format!("a replica froze: {reason}"));
    }
    let truth = truth(world)?;
    replicas_agree(world, &truth)?;
    let mut tally = truth.tally;
    tally.restarts = world.restarts;
    answers_are_true(world, &truth, &mut tally)?;
    order_is_real_time(world, &truth, &mut tally)?;
    healed(world, &truth)?;
    Ok(tally)
}

fn truth(world: &World) -> Result<Truth, String> {
    let mut rule = Rule::new(LOG);
    let mut truth = Truth {
        applied: BTreeMap::new(),
        writes: BTreeMap::new(),
        keys: BTreeMap::new(),
        tally: Tally::default(),
    };
    for (place, bytes) in world.log.iter().enumerate() {
        let Some(bytes) = bytes else { continue };
        let offset = Offset(place as i64);
        let (mut effects, mut dedup) = (Vec::new(), None);
        match rule.take(offset, bytes).map(|record| record.body) {
            None => truth.tally.records_ignored += 1,
            Some(Body::Claim { .. }) => truth.tally.claims_won += 1,
            Some(Body::Release { .. }) => truth.tally.releases += 1,
            Some(Body::Renew { .. }) => {}
            Some(Body::Command {
                effects: changes,
                idempotency,
                ..
            }) => {
                if let Some(Effect::Put { value, .. }) = changes.first() {
                    let bytes = value[..].try_into();
                    let id = bytes.map_err(|_| format!("the value at {offset} is nobody's"))?;
                    let id = u64::from_be_bytes(id);
                    if truth.writes.insert(id, offset.0).is_some() {
                        return Err(format!("request {id} counts twice"));
                    }
                }
                if let Some(Idempotency { key, fingerprint }) = idempotency {
                    let number = key[..].try_into().map(u64::from_be_bytes);
                    let number = number.map_err(|_| format!("the key at {offset} is nobody's"))?;
                    if truth.keys.insert(number, offset.0).is_some() {
                        return Err(format!("two requests with key {number} count"));
                    }
                    dedup = Some(DedupEntry {
                        key: key.as_ref().into(),
                        fingerprint,
                        version: offset,
                        time_ms: rule.position().time_ms,
                    });
                }
                effects = changes;
            }
        }
        let slot = kvcluster_crds::SlotId(0);
        let applied = Applied {
            slot,
            offset,
            effects,
            dedup,
            position: rule.position().clone(),
        };
        truth.applied.insert(offset.0, applied);
    }
    Ok(truth)
}

fn replicas_agree(world: &World, truth: &Truth) -> Result<(), String> {
    for process in &world.processes {
        let mut expected = truth.applied.values();
        for applied in &process.applied {
            if Some(applied) != expected.next() {
                return Err(format!("node {} applied {applied:?}", process.node));
            }
        }
    }
    Ok(())
}

fn answers_are_true(world: &World, truth: &Truth, tally: &mut Tally) -> Result<(), String> {
    // Requests of which some attempt may have taken effect by its answer, and of which one was of unknown fate.
    let (mut possible, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for operation in &world.operations {
        if let Kind::Write { request, answer } = &operation.kind {
            match answer {
                None | Some(Told::Refused(SlotError::Unknown { .. })) => {
                    possible.insert(*request);
                    unknown.insert(*request);
                }
                Some(Told::Done { .. }) => {
                    possible.insert(*request);
                }
                Some(Told::Reused { .. } | Told::Refused(_)) => {}
            }
        }
    }
    for (id, operation) in world.operations.iter().enumerate() {
        let Kind::Write { request, answer } = &operation.kind else {
            continue;
        };
        let stands = truth.writes.get(&(*request as u64)).copied();
        let right = match answer {
            Some(Told::Done { version, by_record }) => {
                tally.writes_answered += 1;
                tally.writes_repeated += u64::from(!by_record);
                let saved = !by_record && unknown.contains(request);
                tally.writes_repeated_after_unknown += u64::from(saved);
                stands == Some(version.0)
            }
            Some(Told::Reused { version }) => {
                tally.keys_reused += 1;
                let key = world.requests[*request].key.as_ref();
                let owner = key.and_then(|key| truth.keys.get(key)).copied();
                stands.is_none() && owner == Some(version.0)
            }
            None | Some(Told::Refused(SlotError::Unknown { .. })) => {
                tally.writes_unknown += 1;
                tally.writes_unknown_that_took_effect += u64::from(stands.is_some());
                true
            }
            Some(Told::Refused(error)) => {
                tally.writes_lost += u64::from(matches!(error, SlotError::Lost { .. }));
                stands.is_none() || possible.contains(request)
            }
        };
        if !right {
            return Err(format!(
                "write {id} was answered {answer:?} and request {request} stands at {stands:?}"
            ));
        }
    }
    Ok(())
}

/// Linearizability of the one key: an operation that began after another had ended stands behind it, by version. All attempts of
/// a request are one operation, which begins with the first of them.
fn order_is_real_time(world: &World, truth: &Truth, tally: &mut Tally) -> Result<(), String> {
    // (begun, version, is a read, number) and (ended, version)
    let mut begun = Vec::new();
    let mut ended = Vec::new();
    let mut attempted = BTreeSet::new();
    for (id, operation) in world.operations.iter().enumerate() {
        match &operation.kind {
            Kind::Write { request, answer } => {
                let stands = truth.writes.get(&(*request as u64));
                if let Some(version) = stands.filter(|_| attempted.insert(*request)) {
                    begun.push((operation.begun, *version, false, id));
                }
                let shown = match answer {
                    Some(Told::Done { version, .. } | Told::Reused { version }) => Some(version.0),
                    Some(Told::Refused(_)) | None => None,
                };
                ended.extend(operation.ended.zip(shown));
            }
            Kind::Read {
                version,
                by_lease,
                refused,
                ..
            } => {
                tally.reads_refused_late += u64::from(*refused);
                let (Some(version), Some(end)) = (version, operation.ended) else {
                    continue;
                };
                *(if *by_lease {
                    &mut tally.reads_by_lease
                } else {
                    &mut tally.reads_by_record
                }) += 1;
                begun.push((operation.begun, *version, true, id));
                ended.push((end, *version));
            }
        }
    }
    begun.sort_unstable();
    ended.sort_unstable();
    let mut newest = -1;
    let mut before = ended.into_iter().peekable();
    for (time, version, read, id) in begun {
        while let Some((_, seen)) = before.next_if(|(end, _)| *end < time) {
            newest = newest.max(seen);
        }
        if version < newest || (version == newest && !read) {
            let what = if read { "read" } else { "write" };
            return Err(format!(
                "{what} {id} has version {version}, behind {newest}"
            ));
        }
    }
    Ok(())
}

/// When the faults are over, somebody leads, everybody is caught up, and writes are answered. (The answer to one that repeats
/// another may be about to be confirmed when the run ends.)
fn healed(world: &World, truth: &Truth) -> Result<(), String> {
    let last = world
        .operations
        .iter()
        .rev()
        .find_map(|operation| match &operation.kind {
            Kind::Write { request, answer } => {
                let unnamed = world.requests[*request].key.is_none();
                unnamed.then_some(answer)
            }
            Kind::Read { .. } => None,
        });
    if !matches!(last, Some(Some(Told::Done { .. }))) {
        return Err(format!("the last write was answered {last:?}"));
    }
    let leader = truth
        .applied
        .values()
        .next_back()
        .and_then(|last| last.position.leader);
    if leader.is_none_or(|(node, _)| node.0 != 0) {
        return Err(format!(
            "the preferred leader is node 0, and {leader:?} leads"
        ));
    }
    let end = truth.applied.keys().next_back().copied();
    for process in world.running() {
        let applied = process.applied.last().map(|applied| applied.offset.0);
        if applied != end || !process.view.caught_up {
            return Err(format!(
                "node {} stands at {applied:?} of {end:?}",
                process.node
            ));
        }
    }
    Ok(())
}
