//! Where a model is called: the address, and the headers that carry the key.
//!
//! An endpoint is checked when it is made, so a call cannot fail over its address. Its `Debug`
//! output shows neither key nor query.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use hyper::Uri;
use mainspring_session::{Api, ErrorCode, Failure};
use reqwest::Url;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use url::Position;

/// Bytes of the shortest key that is taken out of messages: a shorter one, as local servers take,
/// is no secret and would be found inside of words.
const SECRET_BYTES_MIN: usize = 8;

/// How we name ourselves to servers.
pub(crate) const USER_AGENT: &str = concat!("mainspring/", env!("CARGO_PKG_VERSION"));
/// How Anthropic's API takes its key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Which version of Anthropic's API is spoken. Later ones take no `temperature`, and servers that
/// speak the API beside Anthropic know this one.
const ANTHROPIC_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("anthropic-version"), HeaderValue::from_static("2023-06-01"));
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
    /// Scheme, host and port.
    pub(crate) origin: Uri,
    pub(crate) headers: HeaderMap,
    /// A request's head up to the value of its last header, the length of the body.
    head: Vec<u8>,
    pub(crate) host: String,
    pub(crate) is_loopback: bool,
    key: Option<String>,
    /// The function of the host that stands in the place of a server.
    pub(crate) adapter: Option<u32>,
}

impl Endpoint {
    /// Checks an address such as `https://api.openai.com/v1`, and the headers to send there.
    ///
    /// The path of the API's calls (`chat/completions`, `responses` or `messages`) is added unless
    /// it is there already; a query is kept. Without `api_key`, or with one of white space only, no
    /// key is sent.
    ///
    /// # Errors
    /// `agent_invalid` if the address, the key or a header cannot be used.
    pub fn new(
        api: Api,
        base_url: &str,
        api_key: Option<&str>,
        extra_headers: &[(String, String)],
    ) -> Result<Self, Failure> {
        let url = call_url(api, base_url)?;
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => return Err(bad_url(base_url, "has no host")),
        };
        let mut headers = HeaderMap::new();
        let key = api_key.map(str::trim).filter(|key| !key.is_empty());
        if let Some(key) = key {
            let (name, value) = match api {
                Api::Messages => (API_KEY, key.to_owned()),
                _ => (AUTHORIZATION, format!("Bearer {key}")),
            };
            let value = sensitive(&value).ok_or_else(|| {
                Failure::new(
                    ErrorCode::AGENT_INVALID,
                    format!("API key for {host} has characters that a header cannot carry"),
                )
                .with_hint("check that the variable holds the key alone, on one line")
            })?;
            headers.insert(name, value);
        }
        if api == Api::Messages {
            let (name, version) = ANTHROPIC_VERSION;
            headers.insert(name, version);
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
        let origin = format!("{}://{host}", url.scheme());
        let origin = Uri::try_from(origin)
            .map_err(|_| bad_url(base_url, "has a host that HTTP does not allow"))?;
        let head = head(&url, &host, &headers);
        Ok(Self {
            url,
            origin,
            headers,
            head,
            host,
            is_loopback,
            key: key.map(str::to_owned),
            adapter: None,
        })
    }

    /// The place of a model that is a function of the host, by the number the host gave it.
    ///
    /// # Panics
    /// Never: the address is a constant.
    #[must_use]
    pub fn adapter(number: u32) -> Self {
        let mut place = Self::new(Api::Host, "http://python.invalid", None, &[])
            .expect("the address is well formed");
        place.host = "the host".to_owned();
        place.adapter = Some(number);
        place
    }

    /// The head of a request over HTTP/1.1, to its empty line.
    pub(crate) fn request_head(&self, body_bytes: usize) -> Vec<u8> {
        let length = body_bytes.to_string();
        [&self.head[..], length.as_bytes(), b"\r\n\r\n"].concat()
    }

    /// Host and port, as messages name the server.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path of a call, without the query.
    pub(crate) fn path(&self) -> &str {
        self.url.path()
    }

    /// Whether the server is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.is_loopback
    }

    /// Tells keys of one server apart without showing them; the same in every process of one build.
    pub(crate) fn key_mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        // Adapters have no key; what one does says nothing of another.
        self.adapter.hash(&mut hasher);
        for (name, value) in &self.headers {
            (name.as_str(), value.as_bytes()).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The failure without the key, should a server have repeated it.
    pub(crate) fn without_key(&self, mut failure: Failure) -> Failure {
        if let Some(key) = self.key.as_ref().filter(|key| key.len() >= SECRET_BYTES_MIN)
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

fn head(url: &Url, host: &str, headers: &HeaderMap) -> Vec<u8> {
    let target = &url[Position::BeforePath..Position::AfterQuery];
    let mut head = format!(
        "POST {target} HTTP/1.1\r\nhost: {host}\r\nuser-agent: {USER_AGENT}\r\n\
         content-type: application/json\r\n"
    )
    .into_bytes();
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if !headers.contains_key(ACCEPT) {
        head.extend_from_slice(b"accept: */*\r\n");
    }
    head.extend_from_slice(b"content-length: ");
    head
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

/// The path of an API's calls, below the address where the API begins.
fn call_path(api: Api) -> &'static str {
    match api {
        Api::ChatCompletions | Api::Host => "chat/completions",
        Api::Responses => "responses",
        Api::Messages => "messages",
    }
}

fn call_url(api: Api, base_url: &str) -> Result<Url, Failure> {
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
    let call = call_path(api);
    if !path.ends_with(&format!("/{call}")) {
        let path = format!("{path}/{call}");
        url.set_path(&path);
    }
    Ok(url)
}
