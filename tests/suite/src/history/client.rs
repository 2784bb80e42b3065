//! Clients that write down what they ask and what they are answered.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fastrand::Rng;

use super::{Action, Event, What};
use crate::http::{Answer, Connection, Failure};
use crate::load::{Outcome, judge_as, put_target};

/// How long a client waits for an answer, and how long an impatient one.
const PATIENCE: Duration = Duration::from_secs(2);
const IMPATIENCE: Duration = Duration::from_millis(3);
/// Pause between two operations of a client unless told otherwise: a key's history stays short enough to be judged.
const PAUSE: Duration = Duration::from_millis(5);
/// Of a hundred operations: reads, and deletes. The rest are writes.
const READS: u32 = 50;
const DELETES: u32 = 6;

/// What the clients of a run share.
pub struct Run {
    /// Begins each key and each value.
    pub name: String,
    /// Base URLs of the nodes.
    pub nodes: Vec<String>,
    /// The keys.
    pub keys: Vec<String>,
    /// Pause of each client between two operations.
    pub pause: Duration,
    begin: Instant,
    stop: AtomicBool,
    impatient: AtomicBool,
    ids: AtomicU64,
    values: AtomicU64,
    clients: AtomicU32,
}

impl Run {
    /// A run that begins now.
    pub fn new(name: String, nodes: Vec<String>, keys: Vec<String>) -> Self {
        Self {
            name,
            nodes,
            keys,
            pause: PAUSE,
            begin: Instant::now(),
            stop: AtomicBool::new(false),
            impatient: AtomicBool::new(false),
            ids: AtomicU64::new(0),
            values: AtomicU64::new(0),
            clients: AtomicU32::new(0),
        }
    }

    /// Ends the clients after their current operation.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether clients give up after a moment.
    pub fn set_impatient(&self, impatient: bool) {
        self.impatient.store(impatient, Ordering::Relaxed);
    }

    /// Something that is seen now.
    pub fn event(&self, what: What) -> Event {
        let t_ns = self.begin.elapsed().as_nanos();
        Event {
            t_ns: u64::try_from(t_ns).expect("a run is shorter than centuries"),
            what,
        }
    }

    /// Asks for one thing after the other until [`Run::stop`]; each goes to any node.
    pub fn work(&self, seed: u64) -> Result<Vec<Event>> {
        let mut rng = Rng::with_seed(seed);
        let mut client = Client::new(self);
        while !self.stop.load(Ordering::Relaxed) {
            let key = rng.choice(&self.keys).cloned().unwrap_or_default();
            let action = match rng.u32(..100) {
                roll if roll < READS => Action::Get { key },
                roll if roll < READS + DELETES => Action::Delete { key },
                _ => {
                    let number = self.values.fetch_add(1, Ordering::Relaxed);
                    let value = format!("{}-{number}", self.name);
                    Action::Put { key, value }
                }
            };
            client.ask(rng.usize(..self.nodes.len()), &action)?;
            thread::sleep(self.pause);
        }
        Ok(client.events)
    }

    /// Reads every key through every node, each until it is answered, which must be within `limit`.
    pub fn read_all(&self, limit: Duration) -> Result<Vec<Event>> {
        let begin = Instant::now();
        let mut client = Client::new(self);
        for node in 0..self.nodes.len() {
            for key in &self.keys {
                let action = Action::Get { key: key.clone() };
                while !client.ask(node, &action)? {
                    let last = client.events.last();
                    ensure!(
                        begin.elapsed() < limit,
                        "no answer after {limit:?} of quiet: {last:?}"
                    );
                }
            }
        }
        Ok(client.events)
    }
}

struct Client<'a> {
    run: &'a Run,
    number: u32,
    connections: Vec<Option<(Connection, bool)>>,
    events: Vec<Event>,
}

impl<'a> Client<'a> {
    fn new(run: &'a Run) -> Self {
        Self {
            run,
            number: run.clients.fetch_add(1, Ordering::Relaxed),
            connections: run.nodes.iter().map(|_| None).collect(),
            events: Vec::new(),
        }
    }

    /// Asks and writes it down; whether it was answered with success.
    fn ask(&mut self, node: usize, action: &Action) -> Result<bool> {
        let id = self.run.ids.fetch_add(1, Ordering::Relaxed);
        self.events.push(self.run.event(What::Invoke {
            id,
            client: self.number,
            node: u32::try_from(node)?,
            action: action.clone(),
        }));
        let (answer, value) = self.exchange(node, action);
        let what = match answer {
            Outcome::Acknowledged => What::Ok { id, value },
            Outcome::None(why) => What::Fail { id, why },
            Outcome::Unknown(why) => What::Info { id, why },
            Outcome::Wrong(why) => bail!("{action:?} got an answer out of contract: {why}"),
        };
        if matches!(what, What::Info { .. }) {
            // It may still take effect: who goes on is somebody else.
            self.number = self.run.clients.fetch_add(1, Ordering::Relaxed);
        }
        let is_ok = matches!(what, What::Ok { .. });
        self.events.push(self.run.event(what));
        Ok(is_ok)
    }

    fn exchange(&mut self, node: usize, action: &Action) -> (Outcome, Option<String>) {
        let impatient = self.run.impatient.load(Ordering::Relaxed);
        let kept = self.connections[node].take();
        let kept = kept.filter(|(_, was)| *was == impatient);
        let patience = if impatient { IMPATIENCE } else { PATIENCE };
        let connection = match kept {
            Some((connection, _)) => Ok(connection),
            None => Connection::open_within(&self.run.nodes[node], patience),
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(failure) => return (judge_as(Err(failure), |_| false), None),
        };
        let answer = request(&mut connection, action);
        if connection.is_usable() {
            self.connections[node] = Some((connection, impatient));
        }
        let mut value = None;
        let outcome = judge_as(answer, |answer| match action {
            Action::Put { .. } => answer.status == 200 && answer.body == b"PUT success",
            Action::Delete { .. } => answer.status == 200 && answer.body == b"DELETE success",
            Action::Get { .. } if answer.status == 200 => {
                value = Some(answer.text());
                true
            }
            Action::Get { .. } => answer.status == 404 && answer.body == b"Key not found",
        });
        (outcome, value)
    }
}

fn request(connection: &mut Connection, action: &Action) -> Result<Answer, Failure> {
    match action {
        Action::Get { key } => connection.request("GET", &format!("/key/{key}"), &[]),
        Action::Delete { key } => connection.request("DELETE", &format!("/key/{key}"), &[]),
        Action::Put { key, value } => connection.request("PUT", &put_target(key, value), &[]),
    }
}
