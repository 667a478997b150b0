//! Who is let in: bearer tokens, compared by their hashes.
//!
//! Every token is compared with, whether or not one has fitted, and hashes are compared whole, so
//! that neither the time nor a memory dump tells a token.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use mainspring_session::{ErrorCode, Failure};
use sha2::{Digest, Sha256};

use crate::config::ClientToken;
use crate::refusal::Refusal;

/// Bytes of the shortest token that is taken: 16 letters and digits at random are past guessing.
const TOKEN_BYTES_MIN: usize = 16;

/// The clients that are let in.
pub(crate) struct Clients {
    known: Vec<([u8; 32], Arc<str>)>,
    nobody: Arc<str>,
}

impl Clients {
    /// Checks the tokens, and that there are some where other machines can connect.
    pub(crate) fn new(tokens: &[ClientToken], listen: SocketAddr) -> Result<Self, Failure> {
        let invalid = |message: String| Failure::new(ErrorCode::AGENT_INVALID, message);
        if tokens.is_empty() && !listen.ip().is_loopback() {
            let message = format!("the gateway has no tokens and listens on {listen}");
            return Err(invalid(message).with_hint(
                "give tokens, or listen on 127.0.0.1, which only this machine reaches",
            ));
        }
        let mut known: Vec<([u8; 32], Arc<str>)> = Vec::with_capacity(tokens.len());
        for (idx, token) in tokens.iter().enumerate() {
            if token.token.len() < TOKEN_BYTES_MIN {
                let bytes = token.token.len();
                let message =
                    format!("token {idx} has {bytes} bytes, at least {TOKEN_BYTES_MIN} are needed");
                return Err(invalid(message).with_hint("make one: openssl rand -hex 32"));
            }
            let hash = hash(token.token.as_bytes());
            if known.iter().any(|(other, _)| *other == hash) {
                return Err(invalid(format!("token {idx} is there twice")));
            }
            known.push((hash, Arc::from(token.tenant.as_str())));
        }
        Ok(Self { known, nobody: Arc::from("") })
    }

    /// Whose request it is.
    pub(crate) fn tenant(&self, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
        if self.known.is_empty() {
            // A page in a browser may reach this machine under a name of its own.
            let host = headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
            return match is_local(host) {
                true => Ok(Arc::clone(&self.nobody)),
                false => Err(Refusal::forbidden_host()),
            };
        }
        let header = headers.get(AUTHORIZATION).ok_or_else(Refusal::no_token)?;
        let token = header.as_bytes().split_at_checked(7);
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        let (_, token) = token.ok_or_else(Refusal::no_token)?;
        let given = hash(token.trim_ascii());
        let mut found = None;
        for (hash, tenant) in &self.known {
            if is_equal(hash, &given) {
                found = Some(tenant);
            }
        }
        found.cloned().ok_or_else(Refusal::wrong_token)
    }
}

fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Compares all bytes, whatever the first ones say.
fn is_equal(left: &[u8; 32], right: &[u8; 32]) -> bool {
    let differing = left.iter().zip(right).fold(0_u8, |seen, (a, b)| seen | (a ^ b));
    std::hint::black_box(differing) == 0
}

fn is_local(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let address: Option<std::net::IpAddr> = name.parse().ok();
    name.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.0.1:9", "[::1]:80", "[::1]"] {
            assert!(is_local(host.as_bytes()), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:80", "10.0.0.1", "[::2]:80"] {
            assert!(!is_local(host.as_bytes()), "{host}");
        }
    }
}
