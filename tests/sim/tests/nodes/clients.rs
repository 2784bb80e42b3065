//! Clients: each asks one thing at a time, of any node, and writes down what it saw, in the words of the suite's histories.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use kvcluster_node::peer::PeerError;
use kvcluster_suite::history::{Action, Event, What};
use tokio::time::{Instant, sleep, timeout};

use crate::network::Network;
use crate::seen::{Point, Seen};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest pause between two operations, microseconds.
const PAUSE_MICROS: u64 = 15_000;
/// Keys, in several slots.
pub(crate) const KEYS: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];

/// What was seen, in order.
#[derive(Clone)]
pub(crate) struct History(Arc<Mutex<Written>>);

struct Written {
    events: Vec<Event>,
    begin: Instant,
    operations: u64,
    clients: u32,
}

/// How an operation ended.
enum Answer {
    Ok(Option<String>),
    Fail(String),
    Info(String),
}

impl History {
    pub(crate) fn new(begin: Instant) -> Self {
        Self(Arc::new(Mutex::new(Written {
            events: Vec::new(),
            begin,
            operations: 0,
            clients: 0,
        })))
    }

    pub(crate) fn write(&self, what: What) {
        let mut written = self.lock();
        let t_ns = u64::try_from(written.begin.elapsed().as_nanos()).expect("a run is short");
        written.events.push(Event { t_ns, what });
    }

    pub(crate) fn fault(&self, fault: &str, target: &str, phase: &str) {
        self.write(What::Fault {
            fault: fault.to_owned(),
            target: target.to_owned(),
            phase: phase.to_owned(),
        });
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    fn next_operation(&self) -> u64 {
        let mut written = self.lock();
        written.operations += 1;
        written.operations
    }

    fn next_client(&self) -> u32 {
        let mut written = self.lock();
        written.clients += 1;
        written.clients
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client.
pub(crate) struct Client {
    history: History,
    network: Network,
    seen: Seen,
    number: u32,
    rng: fastrand::Rng,
}

impl Client {
    pub(crate) fn new(
        history: &History,
        network: &Network,
        seen: &Seen,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            history: history.clone(),
            network: network.clone(),
            seen: seen.clone(),
            number: history.next_client(),
            rng,
        }
    }

    /// Asks this and that until `until`.
    pub(crate) async fn run(mut self, nodes: usize, until: Instant) {
        while Instant::now() < until {
            let key = self.rng.choice(KEYS).expect("there are keys").to_owned();
            let action = match self.rng.u8(..100) {
                0..50 => Action::Get { key },
                50..56 => Action::Delete { key },
                _ => {
                    let value = format!("v{}", self.history.lock().operations + 1);
                    Action::Put { key, value }
                }
            };
            let node = self.rng.usize(..nodes);
            self.ask(node, action).await;
            sleep(Duration::from_micros(self.rng.u64(100..PAUSE_MICROS))).await;
        }
    }

    /// Asks, and writes it down; whether it was answered with success.
    pub(crate) async fn ask(&mut self, node: usize, action: Action) -> bool {
        let id = self.history.next_operation();
        self.history.write(What::Invoke {
            id,
            client: self.number,
            node: u32::try_from(node).expect("few"),
            action: action.clone(),
        });
        let is_read = matches!(action, Action::Get { .. });
        let asked = timeout(PATIENCE, self.exchange(node, &action)).await;
        let answer = asked.unwrap_or_else(|_| {
            self.seen.reach(Point::ClientGaveUp);
            Answer::Info("no answer in time".to_owned())
        });
        let is_ok = matches!(answer, Answer::Ok(_));
        let what = match answer {
            Answer::Ok(value) => {
                if is_read && value.is_none() {
                    self.seen.reach(Point::ReadFoundNothing);
                }
                What::Ok { id, value }
            }
            Answer::Fail(why) => {
                if !is_read {
                    self.seen.reach(Point::WriteRefused);
                }
                What::Fail { id, why }
            }
            Answer::Info(why) => {
                if !is_read {
                    self.seen.reach(Point::WriteUnknown);
                }
                // It may still take effect: who goes on is somebody else.
                self.number = self.history.next_client();
                What::Info { id, why }
            }
        };
        self.history.write(what);
        is_ok
    }

    async fn exchange(&self, node: usize, action: &Action) -> Answer {
        let (method, target) = match action {
            Action::Get { key } => ("GET", format!("/key/{key}")),
            Action::Delete { key } => ("DELETE", format!("/key/{key}")),
            Action::Put { key, value } => ("PUT", format!("/key/{key}?value={value}")),
        };
        let request = Request::builder().method(method).uri(target);
        let request = request.body(Body::empty()).expect("a request");
        let response = match self.network.send(None, node, request).await {
            Ok(response) => response,
            Err(error @ PeerError::NeverSent { .. }) => return Answer::Fail(error.to_string()),
            Err(error @ PeerError::NoAnswer { .. }) => return Answer::Info(error.to_string()),
        };
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await;
        let body = body.expect("it is in memory");
        judge(action, status, &body)
    }
}

/// The contract of the classic routes; an answer outside of it is a mistake of the product's.
fn judge(action: &Action, status: StatusCode, body: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(body).into_owned();
    match (action, status.as_u16()) {
        (Action::Get { .. }, 200) => Answer::Ok(Some(text)),
        (Action::Get { .. }, 404) if body == b"Key not found" => Answer::Ok(None),
        (Action::Put { .. }, 200) if body == b"PUT success" => Answer::Ok(None),
        (Action::Delete { .. }, 200) if body == b"DELETE success" => Answer::Ok(None),
        (_, 429 | 503) => {
            let problem: serde_json::Value = serde_json::from_slice(body).expect("a problem");
            let what = format!("{status} {}", problem["code"]);
            match problem["effect"].as_str() {
                Some("none") => Answer::Fail(what),
                Some("unknown") => Answer::Info(what),
                other => panic!("{action:?}: effect {other:?} in {text}"),
            }
        }
        _ => panic!("{action:?} got an answer out of contract: {status} {text}"),
    }
}
