//! The Secret with a node's PostgreSQL URL.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kvcluster_crds::NodeId;
use kvcluster_crds::names::{LABEL_NODE, SECRET_KEY_URL};

use crate::cluster::Target;
use crate::secret_text::SecretText;

/// Annotation: the PostgreSQL instance of the node, fixed when the Secret is made.
pub const ANNOTATION_INSTANCE: &str = "kvcluster.dev/postgres-instance";

/// The Secret of `node`.
pub fn secret(target: &Target, node: NodeId, instance: &str, url: &SecretText) -> Secret {
    let mut metadata = super::metadata(target, target.names.node_secret(node));
    metadata.annotations = Some(BTreeMap::from([(
        ANNOTATION_INSTANCE.to_owned(),
        instance.to_owned(),
    )]));
    metadata
        .labels
        .get_or_insert_default()
        .insert(LABEL_NODE.to_owned(), node.to_string());
    Secret {
        metadata,
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(
            SECRET_KEY_URL.to_owned(),
            ByteString(url.reveal().as_bytes().to_vec()),
        )])),
        ..Secret::default()
    }
}
