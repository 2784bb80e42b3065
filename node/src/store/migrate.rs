//! Makes the tables of the node's schema and brings them to this program's version. An older program refuses a newer schema.

use kvcluster_crds::Incarnation;
use sqlx::{Connection, PgConnection};
use xxhash_rust::xxh3::xxh3_64;

use crate::store::StoreError;
use crate::store::postgres::{schema_error, unavailable};
use crate::store::sql;

/// Migrates the schema that `search_path` names and takes it over for the process `incarnation`, in one transaction: from its
/// commit on no other process can flush into it.
pub(super) async fn migrate_and_own(
    connection: &mut PgConnection,
    schema: &str,
    incarnation: Incarnation,
) -> Result<(), StoreError> {
    let found: Option<String> = sqlx::query_scalar(sql::CURRENT_SCHEMA)
        .fetch_one(&mut *connection)
        .await
        .map_err(unavailable)?;
    if found.as_deref() != Some(schema) {
        return Err(schema_error(format!(
            "there is no schema {schema} that this role may use; the operator makes it"
        )));
    }
    let mut tx = connection.begin().await.map_err(unavailable)?;
    sqlx::query(sql::MIGRATION_LOCK)
        .bind(xxh3_64(schema.as_bytes()).cast_signed())
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    migrate(&mut tx, schema).await?;
    sqlx::query(sql::TAKE_OWNERSHIP)
        .bind(incarnation.0.cast_signed())
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    tx.commit().await.map_err(unavailable)
}

async fn migrate(tx: &mut PgConnection, schema: &str) -> Result<(), StoreError> {
    let (any, versions): (bool, bool) = sqlx::query_as(sql::WHAT_IS_THERE)
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable)?;
    if any && !versions {
        return Err(schema_error(format!(
            "schema {schema} holds tables that are not ours; give the cluster another schemaPrefix"
        )));
    }
    if !versions {
        sqlx::raw_sql(sql::CREATE_VERSIONS)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
    }
    let stored: i32 = sqlx::query_scalar(sql::SELECT_VERSION)
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable)?;
    let known = i32::try_from(sql::MIGRATIONS.len()).expect("a handful");
    if stored > known {
        return Err(schema_error(format!(
            "schema {schema} has version {stored} and this program knows versions up to {known}; use a newer image"
        )));
    }
    for (version, text) in (1..)
        .zip(sql::MIGRATIONS)
        .skip(usize::try_from(stored).unwrap_or(0))
    {
        sqlx::raw_sql(text)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
        sqlx::query(sql::INSERT_VERSION)
            .bind(version)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
        tracing::info!(schema, version, "schema migrated");
    }
    Ok(())
}
