//! Where a model is called: the address, and the headers that carry the key.
//!
//! An endpoint is checked when it is made, so a call cannot fail over its address. Its `Debug`
//! output shows neither key nor query.

use std::fmt;

use mainspring_session::{ErrorCode, Failure};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

/// The path of the call, below the address where the API begins.
const CALL_PATH: &str = "chat/completions";
/// Headers that belong to the transport.
const OWN_HEADERS: [&str; 7] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "accept-encoding",
    "user-agent",
];

/// A model server's address and headers, checked.
#[derive(Clone)]
pub struct Endpoint {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) host: String,
    pub(crate) is_loopback: bool,
    key: Option<String>,
}

impl Endpoint {
    /// Checks an address such as `https://api.openai.com/v1`, and the headers to send there.
    ///
    /// `chat/completions` is added to the path unless it is there already; a query is kept.
    /// Without `api_key`, or with one of white space only, no `Authorization` header is sent.
    ///
    /// # Errors
    /// `agent_invalid` if the address, the key or a header cannot be used.
    pub fn new(
        base_url: &str,
        api_key: Option<&str>,
        extra_headers: &[(String, String)],
    ) -> Result<Self, Failure> {
        let url = call_url(base_url)?;
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => return Err(bad_url(base_url, "has no host")),
        };
        let mut headers = HeaderMap::new();
        let key = api_key.map(str::trim).filter(|key| !key.is_empty());
        if let Some(key) = key {
            let value = sensitive(&format!("Bearer {key}")).ok_or_else(|| {
                Failure::new(
                    ErrorCode::AGENT_INVALID,
                    format!("API key for {host} has characters that a header cannot carry"),
                )
                .with_hint("check that the variable holds the key alone, on one line")
            })?;
            headers.insert(AUTHORIZATION, value);
        }
        for (name, value) in extra_headers {
            let refused = |why: &str| {
                let message = format!("header {name:?} for {host} {why}");
                Failure::new(ErrorCode::AGENT_INVALID, message)
            };
            let parsed = HeaderName::try_from(name.as_str())
                .map_err(|_| refused("has a name that HTTP does not allow"))?;
            if OWN_HEADERS.contains(&parsed.as_str()) {
                return Err(refused("is set by the engine itself"));
            }
            let value = sensitive(value)
                .ok_or_else(|| refused("has characters that a header cannot carry"))?;
            headers.insert(parsed, value);
        }
        let is_loopback = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        Ok(Self { url, headers, host, is_loopback, key: key.map(str::to_owned) })
    }

    /// Host and port, as messages name the server.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the server is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.is_loopback
    }

    /// The failure without the key, should a server have repeated it.
    pub(crate) fn without_key(&self, mut failure: Failure) -> Failure {
        if let Some(key) = &self.key
            && failure.message.contains(key.as_str())
        {
            failure.message = failure.message.replace(key.as_str(), "[redacted]");
        }
        failure
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({}://{}{})", self.url.scheme(), self.host, self.url.path())
    }
}

fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn bad_url(base_url: &str, why: &str) -> Failure {
    // The part before an `@` may be a password.
    let shown = base_url.rsplit('@').next().unwrap_or("");
    let shown: String = shown.split(['?', '#']).next().unwrap_or("").chars().take(200).collect();
    Failure::new(ErrorCode::AGENT_INVALID, format!("base_url {shown:?} {why}"))
        .with_hint("write it like https://api.openai.com/v1 or http://127.0.0.1:8080/v1")
}

fn call_url(base_url: &str) -> Result<Url, Failure> {
    let trimmed = base_url.trim();
    let mut url =
        Url::parse(trimmed).map_err(|error| bad_url(trimmed, &format!("is no URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad_url(trimmed, "does not begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad_url(trimmed, "holds a user name or password")
            .with_hint("give the key as api_key or in a header"));
    }
    if url.fragment().is_some() {
        return Err(bad_url(trimmed, "has a fragment"));
    }
    let path = url.path().trim_end_matches('/');
    if !path.ends_with(&format!("/{CALL_PATH}")) {
        let path = format!("{path}/{CALL_PATH}");
        url.set_path(&path);
    }
    Ok(url)
}
