//! Serves a router on a socket: HTTP/1.1, kept-open connections, limits on what a client may take, a stop that lets running
//! requests finish.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::api::long_query::{Aside, LongQueryIo, Room};

/// Longest wait for running requests after the stop, seconds: a request's own deadline. Kubernetes gives 30 s to the whole stop.
pub const DRAIN_SECONDS: u64 = 10;
/// Connections at once; more wait in the kernel's queue. Each takes some 30 KiB while idle.
const CONNECTIONS_MAX: usize = 8_192;
/// A connection that sends no whole request head for so long is closed, seconds. Other nodes close theirs after 20 s of silence,
/// so this never closes one under a request.
const HEAD_SECONDS: u64 = 60;
/// Largest request head, bytes; what is longer in the query is set aside before (`api/long_query.rs`).
const HEAD_BYTES_MAX: usize = 131_072;
/// Pause after the system refused to give a connection, milliseconds: it is out of descriptors or memory.
const ACCEPT_PAUSE_MS: u64 = 100;

/// The end of a server, in two steps, so that no request meets a closing connection.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Answers from now on ask the client to go elsewhere (`Connection: close`); connections are taken as before.
    pub leaving: CancellationToken,
    /// No connection is taken any more, idle ones are closed.
    pub stop: CancellationToken,
}

/// Serves until the stop, then lets running requests finish for at most [`DRAIN_SECONDS`].
pub async fn serve(listener: TcpListener, router: Router, ending: Ending) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let room = Arc::new(Room::default());
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = ending.stop.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection =
                    serve_connection(stream, router.clone(), Arc::clone(&room), ending.clone());
                let abort = abort.clone();
                tasks.spawn(async move {
                    abort.run_until_cancelled(connection).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(Duration::from_secs(DRAIN_SECONDS), tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = tasks.len(),
            "requests did not finish in time; cut off"
        );
        abort.cancel();
        tasks.wait().await;
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections)
        .acquire_owned()
        .await
        .expect("never closed");
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

async fn serve_connection(stream: TcpStream, router: Router, room: Arc<Room>, ending: Ending) {
    let aside = Arc::new(Aside::default());
    let io = LongQueryIo::new(stream, Arc::clone(&aside), room);
    let Ending { leaving, stop } = ending;
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(query) = aside.claim(request.headers_mut()) {
            request.extensions_mut().insert(query);
        }
        let answer = router.clone().call(request.map(Body::new));
        let leaving = leaving.clone();
        async move {
            let mut answer = answer.await.unwrap_or_else(|never| match never {});
            if leaving.is_cancelled() {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(HEAD_SECONDS))
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    // A client that breaks its connection, or whose head does not parse, is no news: hyper has answered what can be answered.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
