//! One flush as one transaction: the owner's row, the compare-and-set of the offsets, the rows.

use std::sync::atomic::Ordering;

use kvcluster_crds::Offset;
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::effect::SlotPosition;
use crate::seeded::{self, Bug};
use crate::store::StoreError;
use crate::store::batch::{Batch, SlotStep};
use crate::store::owner::check_ownership;
use crate::store::postgres::unavailable;
use crate::store::rows::slot_number;
use crate::store::shared::Shared;
use crate::store::{dedup, sql};

/// What became of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Committed.
    Written,
    /// Rolled back: a slot's offset was not the expected one.
    NotWhereExpected,
}

/// Writes `batch`. `durable`: the commit waits for PostgreSQL's disk, and with it everything that was committed before. An error
/// of the commit itself leaves the outcome open; `reconcile` decides it.
pub(super) async fn write(
    connection: &mut PgConnection,
    shared: &Shared,
    batch: &Batch,
    durable: bool,
) -> Result<Outcome, StoreError> {
    let mut tx = begin(connection, shared, durable).await?;
    let moved = move_offsets(&batch.steps)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    let fits = moved.rows_affected() == batch.steps.len() as u64;
    if !fits && !seeded::on(Bug::OffsetUnchecked) {
        tx.rollback().await.map_err(unavailable)?;
        return Ok(Outcome::NotWhereExpected);
    }
    upsert(&mut tx, batch).await?;
    for step in batch
        .steps
        .iter()
        .filter(|_| !seeded::on(Bug::TombstonesDropped))
    {
        delete(&mut tx, step).await?;
    }
    dedup::remember(&mut tx, &batch.steps).await?;
    tx.commit().await.map_err(unavailable)?;
    shared.connected.store(true, Ordering::Relaxed);
    Ok(Outcome::Written)
}

/// Opens a transaction that writes, as the owner of the schema. `durable`: its commit waits for PostgreSQL's disk.
pub(super) async fn begin<'c>(
    connection: &'c mut PgConnection,
    shared: &Shared,
    durable: bool,
) -> Result<Transaction<'c, Postgres>, StoreError> {
    let mut tx = connection.begin().await.map_err(unavailable)?;
    let commit_wait = if durable {
        sql::COMMIT_WAITS_FOR_DISK
    } else {
        sql::COMMIT_DOES_NOT_WAIT
    };
    sqlx::raw_sql(commit_wait)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    check_ownership(&mut tx, shared).await?;
    Ok(tx)
}

/// The compare-and-set of the offsets of some slots.
pub(super) fn move_offsets(
    steps: &[SlotStep],
) -> sqlx::query::Query<'static, Postgres, sqlx::postgres::PgArguments> {
    let slots: Vec<i32> = steps.iter().map(|step| slot_number(step.slot)).collect();
    let expected: Vec<i64> = steps.iter().map(|step| step.expected.0).collect();
    let each = |value: fn(&SlotPosition) -> Option<i64>| -> Vec<Option<i64>> {
        steps.iter().map(|step| value(&step.end)).collect()
    };
    sqlx::query(sql::MOVE_OFFSETS)
        .bind(slots)
        .bind(expected)
        .bind(each(|end| Some(end.next_offset.0)))
        .bind(each(|end| end.checksum_before.map(u64::cast_signed)))
        .bind(each(|end| Some(end.epoch.0.cast_signed())))
        .bind(each(|end| end.leader.map(|(node, _)| i64::from(node.0))))
        .bind(each(|end| {
            end.leader
                .map(|(_, incarnation)| incarnation.0.cast_signed())
        }))
        .bind(each(|end| end.last_leader_offset.map(|offset| offset.0)))
        .bind(each(|end| Some(end.last_seq.cast_signed())))
        .bind(each(|end| end.released_to.map(|node| i64::from(node.0))))
        .bind(each(|end| Some(i64::from(end.lease_ms))))
        .bind(each(|end| Some(end.time_ms.cast_signed())))
        .bind(each(|end| end.whole_at.map(|offset| offset.0)))
}

async fn upsert(tx: &mut PgConnection, batch: &Batch) -> Result<(), StoreError> {
    let (mut slots, mut keys, mut values, mut versions) = (vec![], vec![], vec![], vec![]);
    for (slot, key, value, Offset(version)) in batch.puts() {
        slots.push(slot_number(slot));
        keys.push(key.as_ref());
        values.push(value.as_ref());
        versions.push(version);
    }
    if slots.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(sql::UPSERT)
        .bind(slots)
        .bind(keys)
        .bind(values)
        .bind(versions);
    query.execute(tx).await.map_err(unavailable)?;
    Ok(())
}

async fn delete(tx: &mut PgConnection, step: &SlotStep) -> Result<(), StoreError> {
    let keys: Vec<&[u8]> = step.deletes().map(AsRef::as_ref).collect();
    if !keys.is_empty() {
        let query = sqlx::query(sql::DELETE)
            .bind(slot_number(step.slot))
            .bind(keys);
        query.execute(tx).await.map_err(unavailable)?;
    }
    Ok(())
}
