//! Asks the other nodes what they say of themselves.

use std::time::Duration;

use futures::future::join_all;
use kvcluster_crds::{NodeId, NodeStatus};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::registry::Registry;
use crate::api::ask_status;
use crate::peer::Peers;
use crate::service::Slots;

/// Longest wait for the status of another node.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The statuses of all other nodes of the assignment that answer, asked at once.
pub(super) async fn ask_others(registry: &Registry, peers: &Peers) -> Vec<NodeStatus> {
    let own = registry.config().node;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let others = registry
        .nodes()
        .into_iter()
        .filter(|(node, _)| *node != own);
    let asked = others.map(|(node, address)| ask(peers, node, address, deadline));
    join_all(asked).await.into_iter().flatten().collect()
}

async fn ask(
    peers: &Peers,
    node: NodeId,
    address: String,
    deadline: Instant,
) -> Option<NodeStatus> {
    match ask_status(peers, &address, deadline).await {
        Ok(status) if status.node == node => Some(status),
        Ok(status) => {
            warn!(%node, other = %status.node, address, "another node answers");
            None
        }
        Err(reason) => {
            debug!(%node, reason, "no status");
            None
        }
    }
}
