//! Executes one step. Every step may be repeated: what is there already is success, what is somebody else's is an error.

use crate::clients::kafka::{KafkaClients, KafkaTrouble};
use crate::clients::postgres::PostgresTrouble;
use crate::cluster::Target;
use crate::observe::KubernetesTrouble;
use crate::plan::Step;
use crate::scram::RandomError;
use crate::secret_text::UrlError;

pub mod assignment;
pub mod kafka;
pub mod kubernetes;
pub mod postgres;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaTrouble),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] PostgresTrouble),
    /// Kubernetes.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesTrouble),
    /// What is there belongs to somebody else, since the world was looked at.
    #[error("{0} was made by somebody else meanwhile")]
    AnotherOwner(String),
    /// The published record did not become the newest assignment: another operator was faster.
    #[error("another assignment was published meanwhile")]
    NotFollowed,
    /// An admin URL that cannot be used.
    #[error("the admin URL is unusable: {0}")]
    Url(#[from] UrlError),
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// A step that this program does not execute where it runs.
    #[error("this step needs Kubernetes: {0}")]
    NeedsKubernetes(&'static str),
}

impl ExecuteError {
    /// For conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kafka(KafkaTrouble::Unreachable { .. }) => "KafkaUnreachable",
            Self::Kafka(KafkaTrouble::Settling { .. }) => "KafkaSettling",
            Self::Kafka(KafkaTrouble::Refused { .. }) => "KafkaRefused",
            Self::Kafka(KafkaTrouble::Client { .. }) => "KafkaClientInvalid",
            Self::Postgres(PostgresTrouble::NotPermitted { .. }) => "PostgresNotPermitted",
            Self::Postgres(PostgresTrouble::Unreachable { .. }) => "PostgresUnreachable",
            Self::Postgres(PostgresTrouble::WrongPassword { .. }) => "PostgresWrongPassword",
            Self::Postgres(_) => "PostgresError",
            Self::Kubernetes(KubernetesTrouble::AnotherOwner { .. }) => "ObjectOfAnotherOwner",
            Self::Kubernetes(KubernetesTrouble::Conflict { .. }) => "Conflict",
            Self::Kubernetes(KubernetesTrouble::TimedOut { .. }) => "ApiServerTimedOut",
            Self::Kubernetes(KubernetesTrouble::Failed { .. }) => "ApiServerRefused",
            Self::AnotherOwner(_) => "OwnerChanged",
            Self::NotFollowed => "AssignmentNotFollowed",
            Self::Url(_) => "PostgresSecretUnusable",
            Self::Random(_) => "NoRandomNumbers",
            Self::NeedsKubernetes(_) => "NeedsKubernetes",
        }
    }
}

/// Executes a step that is about Kafka or PostgreSQL; `None` when it is about something else.
pub async fn external(
    clients: &KafkaClients,
    target: &Target,
    step: &Step,
) -> Option<Result<(), ExecuteError>> {
    let bootstrap = &target.spec.kafka.bootstrap_servers;
    Some(match step {
        Step::CreateTopic(topic) => kafka::create(clients, bootstrap, topic).await,
        Step::RepairTopic {
            topic, settings, ..
        } => kafka::set(clients, bootstrap, topic, settings).await,
        Step::DeleteTopics(topics) => kafka::delete(clients, bootstrap, topics).await,
        Step::EnsureRole(role) => postgres::ensure(role).await,
        Step::DropRole(role) => postgres::drop_role(role).await,
        Step::Publish(assignment, _) => {
            let topic = target.names.assignment_topic();
            assignment::publish(clients, bootstrap, &topic, assignment).await
        }
        Step::TrimAssignments { first } => {
            let topic = target.names.assignment_topic();
            assignment::trim(clients, bootstrap, &topic, *first).await
        }
        Step::AddFinalizer
        | Step::RemoveFinalizer { .. }
        | Step::PinLogId { .. }
        | Step::WriteSecret { .. }
        | Step::Apply(_)
        | Step::RestartPod { .. }
        | Step::ForceDeletePod { .. }
        | Step::DeleteStatefulSet { .. }
        | Step::DeleteSecret { .. }
        | Step::NoteTopicsAbsent => return None,
    })
}
