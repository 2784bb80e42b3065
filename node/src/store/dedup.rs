//! What slots remember of requests with an idempotency key, in the table `dedup`: written in the flush that writes their
//! effects, read when a slot is loaded. It belongs to every cut of a slot.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use kvcluster_crds::{Offset, SlotId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::effect::{DedupEntry, Loaded};
use crate::slot::dedup::{WINDOW_MS, is_old};
use crate::store::StoreError;
use crate::store::batch::SlotStep;
use crate::store::postgres::{schema_error, unavailable};
use crate::store::rows::slot_number;
use crate::store::sql;

/// Writes what the steps remember, and deletes what their slots have forgotten by then. No statement when they remember nothing.
pub(super) async fn remember(tx: &mut PgConnection, steps: &[SlotStep]) -> Result<(), StoreError> {
    let (mut slots, mut times, mut versions, mut keys, mut fingerprints) =
        (vec![], vec![], vec![], vec![], vec![]);
    let (mut aged_slots, mut aged_times) = (vec![], vec![]);
    for step in steps.iter().filter(|step| !step.dedup.is_empty()) {
        let time_ms = step.end.time_ms;
        // A replica that catches up may apply in one flush what was written in hours.
        for entry in step
            .dedup
            .iter()
            .filter(|entry| !is_old(entry.time_ms, time_ms))
        {
            slots.push(slot_number(step.slot));
            times.push(entry.time_ms.cast_signed());
            versions.push(entry.version.0);
            keys.push(entry.key.as_ref());
            fingerprints.push(entry.fingerprint.cast_signed());
        }
        if let Some(newest_ms) = time_ms.checked_sub(WINDOW_MS) {
            aged_slots.push(slot_number(step.slot));
            aged_times.push(newest_ms.cast_signed());
        }
    }
    if slots.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(sql::REMEMBER)
        .bind(slots)
        .bind(times)
        .bind(versions)
        .bind(keys)
        .bind(fingerprints)
        .bind(aged_slots)
        .bind(aged_times);
    query.execute(tx).await.map_err(unavailable)?;
    Ok(())
}

/// Adds to `loaded` what its slots remember, in the transaction in which their positions were read and locked.
pub(super) async fn load(
    tx: &mut PgConnection,
    slots: &[i32],
    loaded: &mut BTreeMap<SlotId, Loaded>,
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(sql::SELECT_DEDUP)
        .bind(slots)
        .bind(WINDOW_MS.cast_signed())
        .fetch(tx);
    while let Some(row) = rows.try_next().await.map_err(unavailable)? {
        let (slot, entry) = entry(&row)?;
        let slot = SlotId::from_partition(slot)
            .and_then(|slot| loaded.get_mut(&slot))
            .ok_or_else(|| schema_error(format!("dedup.slot is {slot}")))?;
        slot.dedup.push(entry);
    }
    Ok(())
}

fn entry(row: &PgRow) -> Result<(i32, DedupEntry), StoreError> {
    let number = |name: &str| row.try_get::<i64, _>(name).map_err(unavailable);
    let key: &[u8] = row.try_get("idempotency_key").map_err(unavailable)?;
    let entry = DedupEntry {
        key: key.into(),
        fingerprint: number("fingerprint")?.cast_unsigned(),
        version: Offset(number("version")?),
        time_ms: number("time_ms")?.cast_unsigned(),
    };
    Ok((row.try_get("slot").map_err(unavailable)?, entry))
}
