//! What the schema has of slots, and its removal when the slot is somebody else's.

use kvcluster_crds::{Offset, SlotId};
use sqlx::AssertSqlSafe;

use crate::store::postgres::{PostgresStore, schema_error, unavailable};
use crate::store::rows::{slot_id, slot_number};
use crate::store::{StoreError, sql, write};

/// Longest answer, seconds: each is one small transaction.
const SECONDS: u64 = 10;

pub(super) async fn stored(store: &PostgresStore) -> Result<Vec<(SlotId, Offset)>, StoreError> {
    let work = async |connection: &mut sqlx::PgConnection| {
        sqlx::query_as(sql::SELECT_STORED)
            .fetch_all(connection)
            .await
            .map_err(unavailable)
    };
    let rows: Vec<(i32, i64)> = store.with_connection(SECONDS, work).await?;
    let stored = rows
        .into_iter()
        .map(|(number, next)| Ok((slot_id(number)?, Offset(next))));
    stored.collect()
}

pub(super) async fn sizes(store: &PostgresStore) -> Result<Vec<(SlotId, u64)>, StoreError> {
    let work = async |connection: &mut sqlx::PgConnection| {
        sqlx::query_as(sql::SELECT_SIZES)
            .fetch_all(connection)
            .await
            .map_err(unavailable)
    };
    let rows: Vec<(i32, i64)> = store.with_connection(SECONDS, work).await?;
    let sizes = rows
        .into_iter()
        .map(|(number, bytes)| Ok((slot_id(number)?, bytes.unsigned_abs())));
    sizes.collect()
}

/// The partition stays, empty: dropping it would lock the whole table, behind scans that may take minutes.
pub(super) async fn remove(store: &PostgresStore, slot: SlotId) -> Result<(), StoreError> {
    let shared = &store.shared;
    if shared.has(slot) {
        return Err(schema_error(format!("slot {slot} is loaded")));
    }
    let work = async |connection: &mut sqlx::PgConnection| {
        let mut tx = write::begin(connection, shared, true).await?;
        for statement in sql::REMOVE {
            sqlx::query(statement)
                .bind(slot_number(slot))
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
        }
        let made: bool = sqlx::query_scalar(sql::HAS_PARTITION)
            .bind(format!("kv_{slot}"))
            .fetch_one(&mut *tx)
            .await
            .map_err(unavailable)?;
        if made {
            sqlx::raw_sql(AssertSqlSafe(sql::empty_partition(slot.0)))
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
        }
        tx.commit().await.map_err(unavailable)
    };
    store.with_connection(SECONDS, work).await
}
