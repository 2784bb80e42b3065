//! Makes and drops a node's role and schema. Each is one transaction under an advisory lock, so two operators, or a crash in
//! the middle, leave either all or nothing.
//!
//! A role may log in and owns its schema; it may make no roles, databases or schemas, and nobody else may use its schema.
//! What PostgreSQL grants to everybody (connecting, temporary tables) is not taken away: that would touch other users of the
//! database.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use xxhash_rust::xxh3::xxh3_64;

use super::ExecuteError;
use crate::clients::postgres::{PostgresTrouble, connect, within};
use crate::plan::RoleStep;
use crate::scram;
use crate::secret_text;

/// What keeps a step from being done.
enum Refusal {
    Owner(String),
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// A name or a text, quoted for SQL. Names come from one module and hold no quotes; doubling is for the reader's peace.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Makes role and schema, or puts right what differs. What carries another mark is refused.
pub async fn ensure(step: &RoleStep) -> Result<(), ExecuteError> {
    let password = step.password.as_ref().ok_or(secret_text::UrlError)?;
    let verifier = scram::random_verifier(password)?;
    run(step, async |connection| {
        let marks = marks(connection, step).await?;
        let superuser: bool =
            sqlx::query("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
                .fetch_one(&mut *connection)
                .await?
                .try_get(0)?;
        for statement in ensure_statements(step, &verifier, &marks, superuser) {
            sqlx::query(AssertSqlSafe(statement))
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    })
    .await
}

fn ensure_statements(
    step: &RoleStep,
    verifier: &str,
    marks: &Marks,
    superuser: bool,
) -> Vec<String> {
    let name = identifier(&step.role);
    let comment = literal(&step.comment);
    let mut statements = Vec::new();
    if !marks.role {
        statements.push(format!(
            "CREATE ROLE {name} NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
        ));
        statements.push(format!("COMMENT ON ROLE {name} IS {comment}"));
    }
    // Only a superuser may name these, even to take them away.
    let also = if superuser {
        " NOSUPERUSER NOREPLICATION NOBYPASSRLS"
    } else {
        ""
    };
    statements.push(format!(
        "ALTER ROLE {name} LOGIN NOCREATEDB NOCREATEROLE{also} PASSWORD {}",
        literal(verifier)
    ));
    statements.push(format!(
        "ALTER ROLE {name} SET search_path = {}",
        literal(&step.role)
    ));
    if !superuser {
        // Whoever is no superuser can give a schema only to a role that it belongs to.
        statements.push(format!("GRANT {name} TO CURRENT_USER"));
    }
    if marks.schema {
        statements.push(format!("ALTER SCHEMA {name} OWNER TO {name}"));
    } else {
        statements.push(format!("CREATE SCHEMA {name} AUTHORIZATION {name}"));
        statements.push(format!("COMMENT ON SCHEMA {name} IS {comment}"));
    }
    statements.push(format!("REVOKE ALL ON SCHEMA {name} FROM PUBLIC"));
    statements
}

/// Drops schema and role if both carry the mark, with what is in the schema.
pub async fn drop_role(step: &RoleStep) -> Result<(), ExecuteError> {
    run(step, async |connection| {
        let marks = marks(connection, step).await?;
        let name = identifier(&step.role);
        // A session that is still ending would hold locks.
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1")
            .bind(&step.role)
            .execute(&mut *connection)
            .await?;
        if marks.schema {
            let statement = format!("DROP SCHEMA {name} CASCADE");
            sqlx::query(AssertSqlSafe(statement))
                .execute(&mut *connection)
                .await?;
        }
        if marks.role {
            let statement = format!("DROP ROLE {name}");
            sqlx::query(AssertSqlSafe(statement))
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    })
    .await
}

/// Which of the two exist, both with our mark.
struct Marks {
    role: bool,
    schema: bool,
}

async fn marks(connection: &mut PgConnection, step: &RoleStep) -> Result<Marks, Refusal> {
    let schema = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1";
    let role = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1";
    let schema = mark(connection, schema, step, "schema").await?;
    Ok(Marks {
        role: mark(connection, role, step, "role").await?,
        schema,
    })
}

async fn mark(
    connection: &mut PgConnection,
    query: &'static str,
    step: &RoleStep,
    kind: &str,
) -> Result<bool, Refusal> {
    let found = sqlx::query(query)
        .bind(&step.role)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = found else { return Ok(false) };
    let comment: Option<String> = row.try_get(0)?;
    if comment.as_ref() == Some(&step.comment) {
        return Ok(true);
    }
    Err(Refusal::Owner(format!("{kind} {}", step.role)))
}

/// Runs `work` in a transaction of its own connection, under the lock of the role's name.
async fn run(
    step: &RoleStep,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<(), Refusal>,
) -> Result<(), ExecuteError> {
    let place = secret_text::place(&step.admin);
    let mut connection = connect(&step.admin).await?;
    let key = i64::from_ne_bytes(xxh3_64(step.role.as_bytes()).to_ne_bytes());
    let mut refused = None;
    let done = within(&place, async {
        let mut transaction = connection.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(key)
            .execute(&mut *transaction)
            .await?;
        match work(&mut transaction).await {
            Ok(()) => transaction.commit().await,
            Err(Refusal::Owner(what)) => {
                refused = Some(what);
                transaction.rollback().await
            }
            Err(Refusal::Sql(error)) => Err(error),
        }
    })
    .await;
    let closed: Result<(), PostgresTrouble> = within(&place, connection.close()).await;
    drop(closed);
    done?;
    refused.map_or(Ok(()), |what| Err(ExecuteError::AnotherOwner(what)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret_text::SecretText;

    fn step() -> RoleStep {
        RoleStep {
            instance: "main".to_owned(),
            admin: SecretText::new("postgres://a:b@c:1/d"),
            role: "kv_demo_0".to_owned(),
            comment: "kvcluster:uid:0".to_owned(),
            password: None,
        }
    }

    #[test]
    fn statements_of_a_superuser() {
        let marks = Marks {
            role: false,
            schema: false,
        };
        insta::assert_snapshot!(ensure_statements(&step(), "SCRAM", &marks, true).join("\n"));
    }

    #[test]
    fn statements_of_another_role_for_what_is_there() {
        let marks = Marks {
            role: true,
            schema: true,
        };
        insta::assert_snapshot!(ensure_statements(&step(), "SCRAM", &marks, false).join("\n"));
    }

    #[test]
    fn quotes_do_not_end_a_text() {
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
