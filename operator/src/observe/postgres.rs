//! What a PostgreSQL instance holds of a cluster: schemas, roles, and whether the nodes' passwords work.

use std::collections::{BTreeMap, BTreeSet};

use kvcluster_crds::NodeId;
use sqlx::{Connection, PgConnection, Row};

use crate::clients::postgres::{PostgresTrouble, connect, within};
use crate::secret_text::{self, SecretText};

/// An instance, as far as one cluster is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresView {
    /// URL of the role that makes roles and schemas.
    pub admin: SecretText,
    /// Schemas with one of the names in question, or marked as this cluster's.
    pub schemas: BTreeMap<String, SchemaView>,
    /// Roles likewise.
    pub roles: BTreeMap<String, RoleView>,
    /// Whether the nodes that have a URL can log in with it.
    pub logins: BTreeMap<NodeId, Login>,
}

impl PostgresView {
    /// The nodes whose mark stands on a schema or role; `prefix` is how the cluster's marks begin.
    pub fn nodes(&self, prefix: &str) -> BTreeSet<NodeId> {
        let schemas = self.schemas.values().map(|schema| &schema.comment);
        let roles = self.roles.values().map(|role| &role.comment);
        let marks = schemas.chain(roles).flatten();
        marks
            .filter_map(|mark| mark.strip_prefix(prefix)?.parse().ok().map(NodeId))
            .collect()
    }
}

/// A schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaView {
    /// Name of the role that owns it.
    pub owner: String,
    /// Its comment, where its cluster stands.
    pub comment: Option<String>,
    /// Whether everybody may use it.
    pub open_to_public: bool,
}

/// A role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleView {
    /// Its comment, where its cluster stands.
    pub comment: Option<String>,
    /// Whether it may log in.
    pub may_log_in: bool,
    /// Whether it may do anything beyond that: superuser, make roles or databases, replicate, pass row security.
    pub elevated: bool,
    /// Its `search_path` setting.
    pub search_path: Option<String>,
}

/// What came of logging in as a node's role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// It works.
    Works,
    /// User or password is wrong: the role is to be made, or its password to be set again.
    Refused,
    /// Something else is in the way.
    Failed(PostgresTrouble),
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Question {
    /// URL of the role that makes roles and schemas.
    pub admin: SecretText,
    /// Names of the schemas (and roles) of the nodes on this instance.
    pub names: Vec<String>,
    /// How the comments of this cluster's schemas begin.
    pub comment_prefix: String,
    /// URLs of the nodes on this instance.
    pub urls: BTreeMap<NodeId, SecretText>,
}

const SCHEMAS: &str = "
    SELECT n.nspname::text, o.rolname::text, obj_description(n.oid, 'pg_namespace'),
           EXISTS (SELECT FROM aclexplode(n.nspacl) a WHERE a.grantee = 0)
    FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner
    WHERE n.nspname::text = ANY ($1) OR starts_with(obj_description(n.oid, 'pg_namespace'), $2)";

const ROLES: &str = "
    SELECT r.rolname::text, shobj_description(r.oid, 'pg_authid'), r.rolcanlogin,
           r.rolsuper OR r.rolcreatedb OR r.rolcreaterole OR r.rolreplication OR r.rolbypassrls,
           r.rolconfig
    FROM pg_roles r
    WHERE r.rolname::text = ANY ($1) OR starts_with(shobj_description(r.oid, 'pg_authid'), $2)";

/// Looks at an instance.
pub async fn observe(question: Question) -> Result<PostgresView, PostgresTrouble> {
    let place = secret_text::place(&question.admin);
    let mut connection = connect(&question.admin).await?;
    let mut view = within(&place, look(&mut connection, &question)).await?;
    drop(within(&place, connection.close()).await);
    for (&node, url) in &question.urls {
        view.logins.insert(node, log_in(url).await);
    }
    Ok(view)
}

async fn look(
    connection: &mut PgConnection,
    question: &Question,
) -> Result<PostgresView, sqlx::Error> {
    let mut view = PostgresView {
        admin: question.admin.clone(),
        schemas: BTreeMap::new(),
        roles: BTreeMap::new(),
        logins: BTreeMap::new(),
    };
    let schemas = sqlx::query(SCHEMAS)
        .bind(&question.names)
        .bind(&question.comment_prefix);
    for row in schemas.fetch_all(&mut *connection).await? {
        let schema = SchemaView {
            owner: row.try_get(1)?,
            comment: row.try_get(2)?,
            open_to_public: row.try_get(3)?,
        };
        view.schemas.insert(row.try_get(0)?, schema);
    }
    let roles = sqlx::query(ROLES)
        .bind(&question.names)
        .bind(&question.comment_prefix);
    for row in roles.fetch_all(&mut *connection).await? {
        let settings: Option<Vec<String>> = row.try_get(4)?;
        let search_path = settings
            .unwrap_or_default()
            .into_iter()
            .find_map(|setting| setting.strip_prefix("search_path=").map(str::to_owned));
        let role = RoleView {
            comment: row.try_get(1)?,
            may_log_in: row.try_get(2)?,
            elevated: row.try_get(3)?,
            search_path,
        };
        view.roles.insert(row.try_get(0)?, role);
    }
    Ok(view)
}

/// Logs in as a node would. One attempt each pass: the answer is the only proof that the password is still the right one.
async fn log_in(url: &SecretText) -> Login {
    match connect(url).await {
        Ok(connection) => {
            drop(within(&secret_text::place(url), connection.close()).await);
            Login::Works
        }
        Err(PostgresTrouble::WrongPassword { .. }) => Login::Refused,
        Err(trouble) => Login::Failed(trouble),
    }
}
