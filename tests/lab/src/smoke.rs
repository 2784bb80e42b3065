//! The first use of a store: keys go in through its base URL, come back the same, and go again.

use std::time::Duration;

use anyhow::{Result, bail};
use ureq::Agent;

use crate::shell;

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long the store may take until every key works: leaders are elected within a second or two.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// Enough keys to meet most slots of a small cluster.
const KEYS: usize = 16;

/// A client that hands back every status.
pub fn client() -> Agent {
    let config = Agent::config_builder();
    config
        .timeout_global(Some(REQUEST_LIMIT))
        .http_status_as_error(false)
        .build()
        .into()
}

/// Whether the URL answers with 200.
pub fn is_ok(client: &Agent, url: &str) -> bool {
    client
        .get(url)
        .call()
        .is_ok_and(|response| response.status() == 200)
}

/// Writes, reads and deletes keys.
pub fn run(base_url: &str) -> Result<()> {
    let client = client();
    for number in 0..KEYS {
        let key = format!("{base_url}/key/lab-smoke-{number}");
        let value = format!("value-{number}");
        expect_soon(&key, "PUT success", || {
            client
                .put(format!("{key}?value={value}"))
                .send_empty()?
                .body_mut()
                .read_to_string()
        })?;
        expect_soon(&key, &value, || {
            client.get(&key).call()?.body_mut().read_to_string()
        })?;
        expect_soon(&key, "DELETE success", || {
            client.delete(&key).call()?.body_mut().read_to_string()
        })?;
    }
    Ok(())
}

fn expect_soon(
    key: &str,
    wanted: &str,
    mut ask: impl FnMut() -> Result<String, ureq::Error>,
) -> Result<()> {
    let mut last = String::new();
    let found = shell::wait_for(&format!("`{wanted}`"), READY_LIMIT, || {
        last = ask().unwrap_or_else(|error| error.to_string());
        Ok((last == wanted).then_some(()))
    });
    match found {
        Ok(()) => Ok(()),
        Err(error) => bail!("{error}: {key} answers `{last}`"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers every request on one connection at a time with the next of `answers`.
    fn server(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a client comes");
                let mut request = [0; 1_024];
                let _ = stream.read(&mut request).expect("it sends a request");
                let (status, body) = answer.split_once(' ').expect("status and body");
                let head = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream
                    .write_all(head.as_bytes())
                    .expect("it takes the answer");
            }
        });
        url
    }

    #[test]
    fn only_200_is_good() {
        let url = server(&["503 not yet", "200 ok"]);
        assert!(!is_ok(&client(), &url));
        assert!(is_ok(&client(), &url));
        assert!(!is_ok(&client(), &url), "the server is gone");
    }

    #[test]
    fn an_answer_that_is_not_the_wanted_one_is_asked_again() {
        let url = server(&["503 {\"effect\":\"none\"}", "200 PUT success"]);
        let client = client();
        expect_soon(&url, "PUT success", || {
            client.put(&url).send_empty()?.body_mut().read_to_string()
        })
        .expect("the second answer is the wanted one");
    }
}
