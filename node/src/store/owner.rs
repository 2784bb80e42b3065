//! Whose schema it is: every transaction that writes asks first.

use sqlx::PgConnection;
use sqlx::error::DatabaseError;

use crate::seeded::{self, Bug};
use crate::store::postgres::{schema_error, unavailable};
use crate::store::shared::Shared;
use crate::store::{StoreError, sql};

/// PostgreSQL's code for a table that does not exist.
const UNDEFINED_TABLE: &str = "42P01";

/// Locks the owner row for the rest of the transaction; [`StoreError::Fenced`] when it names another process.
pub(super) async fn check_ownership(
    tx: &mut PgConnection,
    shared: &Shared,
) -> Result<(), StoreError> {
    let owner: Option<i64> = sqlx::query_scalar(sql::CHECK_OWNERSHIP)
        .fetch_optional(tx)
        .await
        .map_err(|error| {
            if is_undefined(&error) {
                let schema = &shared.schema;
                return schema_error(format!("the tables of {schema} are gone: {error}"));
            }
            unavailable(error)
        })?;
    if owner == Some(shared.incarnation.0.cast_signed()) || seeded::on(Bug::OwnerUnchecked) {
        Ok(())
    } else {
        Err(StoreError::Fenced(shared.schema.clone()))
    }
}

/// Whether PostgreSQL answers that there is no such table: no later attempt of this process could help.
fn is_undefined(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code == UNDEFINED_TABLE)
}
