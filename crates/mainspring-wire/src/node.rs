//! A JSON tree that keeps the order of object fields.
//!
//! `serde_json::Value` sorts fields by name, and a grammar made from a schema writes fields in the
//! order of the schema: `arguments` would come before `name`, and a model would have to write the
//! arguments before it has said which tool they are for.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// A JSON value; fields in source order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// Anything but an array or an object.
    Scalar(Value),
    /// Elements in order.
    Array(Vec<Node>),
    /// Fields in order.
    Object(Vec<(String, Node)>),
}

impl Node {
    /// An object without fields: as a schema, any value.
    pub(crate) fn any() -> Self {
        Node::Object(Vec::new())
    }

    /// A string.
    pub(crate) fn text(text: &str) -> Self {
        Node::Scalar(Value::from(text))
    }

    /// An object of these fields.
    pub(crate) fn object<const N: usize>(fields: [(&str, Node); N]) -> Self {
        Node::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The field of this name, if this is an object that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Object(fields) => {
                fields.iter().find(|(name, _)| name == key).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The fields, if this is an object.
    pub(crate) fn fields(&self) -> Option<&[(String, Node)]> {
        match self {
            Node::Object(fields) => Some(fields),
            _ => None,
        }
    }

    /// The elements, if this is an array.
    pub(crate) fn elements(&self) -> Option<&[Node]> {
        match self {
            Node::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// The text, if this is a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Node::Scalar(value) => value.as_str(),
            _ => None,
        }
    }

    /// Its JSON, compact.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("keys are strings, so a node always encodes")
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::text(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            elements.push(element);
        }
        Ok(Node::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Object(fields))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Scalar(value) => value.serialize(serializer),
            Node::Array(elements) => elements.serialize(serializer),
            Node::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}
