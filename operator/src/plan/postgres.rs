//! Roles and schemas, one of each per node. A node's Secret is written before its role is made: the password in it is the
//! truth, so a crash in between loses none.

use kvcluster_crds::NodeId;

use super::{Finding, RoleStep, Stage, Step};
use crate::clients::postgres::PostgresTrouble;
use crate::cluster::Target;
use crate::observe::{Login, NodeSecret, PostgresView, World};
use crate::secret_text;
use crate::seeded::{self, Bug};

pub(super) fn stage(target: &Target, world: &World, nodes: &[NodeId]) -> Stage {
    let secrets = match &world.secrets {
        Ok(secrets) => secrets,
        Err(trouble) => return Stage::refuse("SecretsUnreadable", trouble),
    };
    let mut stage = Stage::default();
    let mut roles = Vec::new();
    let is_later = super::assignment::newest(world).is_some();
    for &node in nodes {
        let secret = secrets.get(&node);
        let instance = instance(target, world, node);
        let view = match world.postgres.get(&instance) {
            Some(Ok(view)) => view,
            Some(Err(trouble)) => {
                let message = format!("instance {instance}: {trouble}");
                return Stage::refuse(reason(trouble), message);
            }
            None => {
                let message = format!(
                    "node {node} stands on PostgreSQL instance {instance}, which spec.postgres.instances does not name; put it back"
                );
                return Stage::refuse("PostgresInstanceMissing", message);
            }
        };
        if let Some(refused) = owner(target, node, view) {
            return Stage {
                steps: Vec::new(),
                refused: Some(refused),
            };
        }
        match place(target, node, &instance, view, secret) {
            Place::Write(_) if is_later && seeded::on(Bug::SecretsAtFirstOnly) => {}
            Place::Write(step) => stage.steps.push(step),
            Place::Stands(Some(step)) => roles.push(step),
            Place::Stands(None) => {}
            Place::Refused(finding) => stage.refused = Some(finding),
        }
    }
    stage.steps.extend(roles);
    stage
}

/// Where a node's schema is, or goes.
pub(super) fn instance(target: &Target, world: &World, node: NodeId) -> String {
    let published = super::assignment::newest(world).and_then(|table| table.node(node));
    let secret = world
        .secrets
        .as_ref()
        .ok()
        .and_then(|secrets| secrets.get(&node));
    published
        .map(|entry| entry.postgres_instance.clone())
        .or_else(|| secret.map(|secret| secret.instance.clone()))
        .unwrap_or_else(|| target.instance_in_turn(node).to_owned())
}

pub(super) fn reason(trouble: &PostgresTrouble) -> &'static str {
    match trouble {
        PostgresTrouble::SecretMissing { .. } => "PostgresSecretMissing",
        PostgresTrouble::SecretUnusable { .. } => "PostgresSecretUnusable",
        PostgresTrouble::SecretUnreadable { .. } => "PostgresSecretUnreadable",
        PostgresTrouble::Unreachable { .. } => "PostgresUnreachable",
        PostgresTrouble::WrongPassword { .. } => "PostgresWrongPassword",
        PostgresTrouble::DatabaseMissing { .. } => "PostgresDatabaseMissing",
        PostgresTrouble::NotPermitted { .. } => "PostgresNotPermitted",
        PostgresTrouble::Answered { .. } => "PostgresError",
    }
}

/// A schema or role of the node's name that is not marked as the node's.
fn owner(target: &Target, node: NodeId, view: &PostgresView) -> Option<Finding> {
    let name = target.schema(node);
    let ours = target.owner_comment(node);
    let told = |comment: Option<&String>| {
        comment.map_or_else(
            || "has no comment".to_owned(),
            |text| format!("is marked {text:?}"),
        )
    };
    let schema = view
        .schemas
        .get(&name)
        .filter(|schema| schema.comment.as_ref() != Some(&ours));
    if let Some(schema) = schema {
        let message = format!(
            "schema {name} exists and {}; drop it (DROP SCHEMA {name} CASCADE) if its data is not needed, or name the KvCluster \
             differently",
            told(schema.comment.as_ref())
        );
        return Some(Finding::new("SchemaOfAnotherOwner", message));
    }
    let role = view
        .roles
        .get(&name)
        .filter(|role| role.comment.as_ref() != Some(&ours))?;
    let message = format!(
        "role {name} exists and {}; drop it (DROP ROLE {name}) if nobody needs it, or name the KvCluster differently",
        told(role.comment.as_ref())
    );
    Some(Finding::new("RoleOfAnotherOwner", message))
}

enum Place {
    Write(Step),
    Stands(Option<Step>),
    Refused(Finding),
}

fn place(
    target: &Target,
    node: NodeId,
    instance: &str,
    view: &PostgresView,
    secret: Option<&NodeSecret>,
) -> Place {
    let role = target.schema(node);
    let password = secret.and_then(|secret| secret_text::password_of(&secret.url));
    let write = |password| {
        Place::Write(Step::WriteSecret {
            node,
            instance: instance.to_owned(),
            admin: view.admin.clone(),
            role: role.clone(),
            password,
        })
    };
    let (Some(secret), Some(password)) = (secret, password) else {
        return write(None);
    };
    let wanted = secret_text::node_url(&view.admin, &role, &password);
    if secret.instance != instance || wanted.as_ref() != Ok(&secret.url) {
        return write(Some(password));
    }
    if stands(target, node, view) {
        return Place::Stands(None);
    }
    if let Some(Login::Failed(trouble)) = view.logins.get(&node) {
        let message = format!("node {node} cannot log in: {trouble}");
        return Place::Refused(Finding::new("NodeLoginFails", message));
    }
    Place::Stands(Some(Step::EnsureRole(RoleStep {
        instance: instance.to_owned(),
        admin: view.admin.clone(),
        role,
        comment: target.owner_comment(node),
        password: Some(password),
    })))
}

fn stands(target: &Target, node: NodeId, view: &PostgresView) -> bool {
    let name = target.schema(node);
    let schema = view.schemas.get(&name);
    let role = view.roles.get(&name);
    schema.is_some_and(|schema| schema.owner == name && !schema.open_to_public)
        && role.is_some_and(|role| {
            role.may_log_in && !role.elevated && role.search_path.as_ref() == Some(&name)
        })
        && (view.logins.get(&node) == Some(&Login::Works) || seeded::on(Bug::LoginUntested))
}
