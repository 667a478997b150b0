//! JSON Schemas as servers take them: cut down for grammar converters, checked for strict mode.
//!
//! A cleaned schema never refuses a value that the original accepts, with one exception: an object
//! that lists its properties and does not speak of others is closed, because an open one lets a
//! small model write on for ever. Arguments are validated against the original afterwards.

use serde_json::Value;

use crate::node::Node;

/// Nodes that cleaning one schema may visit; what lies past it becomes "any value". References are
/// inlined, and a schema of a few lines can otherwise unfold without end.
const SCHEMA_NODES_MAX: usize = 5_000;
/// Largest `minItems` or `maxItems` that goes into a grammar; converters unroll repetitions.
const GRAMMAR_REPEAT_MAX: u64 = 256;
/// References inside references that a schema for Anthropic may have.
const REFERENCE_DEPTH_MAX: usize = 16;
/// Bounds past this are left out of a grammar; a JSON number holds no larger integer exactly.
const GRAMMAR_INTEGER_MAX: i64 = 1 << 53;

/// The schema with local references inlined, reduced to the keywords that llama.cpp's grammar
/// converter reads.
pub(crate) fn clean(schema: &Node) -> Node {
    let mut cleaner = Cleaner { root: schema, open: Vec::new(), nodes_left: SCHEMA_NODES_MAX };
    cleaner.clean(schema)
}

struct Cleaner<'a> {
    root: &'a Node,
    open: Vec<&'a str>,
    nodes_left: usize,
}

impl<'a> Cleaner<'a> {
    fn clean(&mut self, node: &'a Node) -> Node {
        if self.nodes_left == 0 {
            return Node::any();
        }
        self.nodes_left -= 1;
        if let Some(pointer) = node.get("$ref").and_then(Node::as_str) {
            return self.clean_reference(pointer);
        }
        for key in ["const", "enum"] {
            if let Some(values) = node.get(key) {
                return Node::object([(key, values.clone())]);
            }
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(options) = node.get(key).and_then(Node::elements) {
                return match options {
                    [] => Node::any(),
                    [only] => self.clean(only),
                    several => Node::object([("anyOf", self.clean_all(several))]),
                };
            }
        }
        if let Some(parts) = node.get("allOf").and_then(Node::elements) {
            return self.clean_merged(node, parts);
        }
        self.clean_typed(node)
    }

    fn clean_all(&mut self, nodes: &'a [Node]) -> Node {
        Node::Array(nodes.iter().map(|node| self.clean(node)).collect())
    }

    /// A reference that is already being inlined stands for itself without end: any value.
    fn clean_reference(&mut self, pointer: &'a str) -> Node {
        if self.open.contains(&pointer) {
            return Node::any();
        }
        let Some(target) = resolve(self.root, pointer) else {
            return Node::any();
        };
        self.open.push(pointer);
        let cleaned = self.clean(target);
        self.open.pop();
        cleaned
    }

    /// `allOf` of objects becomes one object; of anything else, only a single part can be kept.
    fn clean_merged(&mut self, node: &'a Node, parts: &'a [Node]) -> Node {
        let mut cleaned: Vec<Node> = parts.iter().map(|part| self.clean(part)).collect();
        if node.get("properties").is_some() {
            cleaned.push(self.clean_typed(node));
        }
        if cleaned.len() == 1 {
            return cleaned.swap_remove(0);
        }
        let mut properties = Vec::new();
        let mut required = Vec::new();
        for part in &cleaned {
            let Some(fields) = part.get("properties").and_then(Node::fields) else {
                return Node::any();
            };
            properties.extend(fields.iter().cloned());
            required.extend(part.get("required").and_then(Node::elements).into_iter().flatten());
        }
        Node::object([
            ("type", Node::text("object")),
            ("properties", Node::Object(properties)),
            ("required", Node::Array(required.into_iter().cloned().collect())),
            ("additionalProperties", Node::Scalar(Value::Bool(false))),
        ])
    }

    fn clean_typed(&mut self, node: &'a Node) -> Node {
        let properties = node.get("properties").and_then(Node::fields);
        let kind = node.get("type");
        let known = kind.is_some_and(|kind| match kind {
            Node::Array(names) => names.iter().all(is_type_name),
            name => is_type_name(name),
        });
        let mut fields = Vec::new();
        match kind {
            Some(kind) if known => fields.push(("type".to_owned(), kind.clone())),
            _ if properties.is_some() => fields.push(("type".to_owned(), Node::text("object"))),
            _ => return Node::any(),
        }
        if let Some(properties) = properties {
            self.clean_properties(node, properties, &mut fields);
        } else if let Some(extra) = node.get("additionalProperties") {
            let extra = if extra.fields().is_some() { self.clean(extra) } else { extra.clone() };
            fields.push(("additionalProperties".to_owned(), extra));
        }
        match (node.get("items"), node.get("prefixItems").and_then(Node::elements)) {
            (_, Some(elements)) => {
                fields.push(("prefixItems".to_owned(), self.clean_all(elements)));
            }
            (Some(Node::Array(elements)), None) => {
                fields.push(("prefixItems".to_owned(), self.clean_all(elements)));
            }
            (Some(items @ Node::Object(_)), None) => {
                fields.push(("items".to_owned(), self.clean(items)));
            }
            _ => {}
        }
        let is_integer = kind.and_then(Node::as_str) == Some("integer");
        let bounds = |(key, value): &&(String, Node)| keeps_bound(key, value, is_integer);
        fields.extend(node.fields().unwrap_or(&[]).iter().filter(bounds).cloned());
        Node::Object(fields)
    }

    fn clean_properties(
        &mut self,
        node: &'a Node,
        properties: &'a [(String, Node)],
        fields: &mut Vec<(String, Node)>,
    ) {
        let cleaned = properties.iter().map(|(name, node)| (name.clone(), self.clean(node)));
        fields.push(("properties".to_owned(), Node::Object(cleaned.collect())));
        let required = node.get("required").and_then(Node::elements).unwrap_or(&[]);
        let listed =
            |name: &&Node| properties.iter().any(|(known, _)| name.as_str() == Some(known));
        let required: Vec<Node> = required.iter().filter(listed).cloned().collect();
        if !required.is_empty() {
            fields.push(("required".to_owned(), Node::Array(required)));
        }
        let extra = match node.get("additionalProperties") {
            Some(extra @ Node::Object(_)) => self.clean(extra),
            Some(extra) => extra.clone(),
            None => Node::Scalar(Value::Bool(false)),
        };
        fields.push(("additionalProperties".to_owned(), extra));
    }
}

fn is_type_name(node: &Node) -> bool {
    let names = ["string", "number", "integer", "boolean", "object", "array", "null"];
    node.as_str().is_some_and(|name| names.contains(&name))
}

fn keeps_bound(key: &str, value: &Node, is_integer: bool) -> bool {
    let Node::Scalar(value) = value else {
        return false;
    };
    match key {
        "minItems" | "maxItems" => value.as_u64().is_some_and(|n| n <= GRAMMAR_REPEAT_MAX),
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
            is_integer
                && value
                    .as_i64()
                    .is_some_and(|n| n.unsigned_abs() <= GRAMMAR_INTEGER_MAX.unsigned_abs())
        }
        _ => false,
    }
}

/// The node a local reference (`#/a/b`) points to.
fn resolve<'a>(root: &'a Node, pointer: &str) -> Option<&'a Node> {
    let path = pointer.strip_prefix('#')?;
    let mut node = root;
    for token in path.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        node = match node {
            Node::Array(elements) => elements.get(token.parse::<usize>().ok()?)?,
            other => other.get(&token)?,
        };
    }
    Some(node)
}

/// Whether a provider takes the schema in strict mode as it stands.
///
/// # Source
/// OpenAI, guide "Structured outputs", section "Supported schemas": the root is an object, every
/// object is closed and requires all its properties, and only some keywords exist.
pub(crate) fn qualifies_as_strict(schema: &Node) -> bool {
    let root_is_object = schema.get("type").and_then(Node::as_str) == Some("object");
    root_is_object && schema.get("anyOf").is_none() && strict_node(schema)
}

fn strict_node(node: &Node) -> bool {
    let Some(fields) = node.fields() else {
        return false;
    };
    let is_object = node.get("type").is_some_and(|kind| match kind {
        Node::Array(names) => names.iter().any(|name| name.as_str() == Some("object")),
        name => name.as_str() == Some("object"),
    });
    if is_object && !is_closed(node) {
        return false;
    }
    fields.iter().all(|(key, value)| match key.as_str() {
        "properties" | "$defs" | "definitions" => value
            .fields()
            .is_some_and(|entries| entries.iter().all(|(_, schema)| strict_node(schema))),
        "items" => strict_node(value),
        "anyOf" => value.elements().is_some_and(|options| options.iter().all(strict_node)),
        "type"
        | "description"
        | "title"
        | "enum"
        | "const"
        | "required"
        | "$ref"
        | "$schema"
        | "additionalProperties"
        | "minimum"
        | "maximum"
        | "exclusiveMinimum"
        | "exclusiveMaximum"
        | "multipleOf"
        | "minItems"
        | "maxItems"
        | "pattern" => true,
        _ => false,
    })
}

fn is_closed(node: &Node) -> bool {
    let properties = node.get("properties").and_then(Node::fields).unwrap_or(&[]);
    let required = node.get("required").and_then(Node::elements).unwrap_or(&[]);
    let is_required = |name: &String| required.iter().any(|node| node.as_str() == Some(name));
    node.get("additionalProperties") == Some(&Node::Scalar(Value::Bool(false)))
        && properties.iter().all(|(name, _)| is_required(name))
}

/// The schema in the form that Anthropic's structured outputs take; none if it cannot have it.
///
/// What the form cannot say is left out, so the answer is checked against the original afterwards.
/// None: an object that is open, a tuple, or a root that is no object.
///
/// # Source
/// Anthropic, "Structured outputs", section "JSON Schema limitations".
pub(crate) fn for_messages(schema: &Node) -> Option<Node> {
    let is_object = schema.get("type").and_then(Node::as_str) == Some("object");
    let is_reference = schema.get("$ref").is_some();
    if (is_object || is_reference) && !refers_to_itself(schema) {
        closed_form(schema)
    } else {
        None
    }
}

/// Recursive schemas are refused; so is, here, every schema whose references do not end soon.
fn refers_to_itself(schema: &Node) -> bool {
    fn deeper(root: &Node, node: &Node, depth: usize, nodes_left: &mut usize) -> bool {
        if depth > REFERENCE_DEPTH_MAX || *nodes_left == 0 {
            return true;
        }
        *nodes_left -= 1;
        match node {
            Node::Scalar(_) => false,
            Node::Array(elements) => {
                elements.iter().any(|element| deeper(root, element, depth, nodes_left))
            }
            Node::Object(fields) => {
                fields.iter().any(|(key, value)| match (&**key, value.as_str()) {
                    ("$ref", Some(pointer)) => match resolve(root, pointer) {
                        Some(target) => deeper(root, target, depth + 1, nodes_left),
                        None => true,
                    },
                    ("$defs" | "definitions", _) => false,
                    _ => deeper(root, value, depth, nodes_left),
                })
            }
        }
    }
    deeper(schema, schema, 0, &mut { SCHEMA_NODES_MAX })
}

fn closed_form(node: &Node) -> Option<Node> {
    let fields = node.fields()?;
    let mut kept = Vec::with_capacity(fields.len() + 1);
    let is_object = node.get("type").and_then(Node::as_str) == Some("object");
    for (key, value) in fields {
        let value = match key.as_str() {
            "properties" | "$defs" | "definitions" => {
                let inner = value.fields()?.iter();
                let inner: Option<Vec<_>> =
                    inner.map(|(name, node)| Some((name.clone(), closed_form(node)?))).collect();
                Node::Object(inner?)
            }
            "items" => closed_form(value)?,
            "anyOf" | "oneOf" | "allOf" => {
                let options: Option<Vec<_>> = value.elements()?.iter().map(closed_form).collect();
                let key = if key == "oneOf" { "anyOf" } else { key };
                kept.push((key.to_owned(), Node::Array(options?)));
                continue;
            }
            "additionalProperties" if *value == Node::Scalar(Value::Bool(false)) => continue,
            "additionalProperties" | "patternProperties" | "prefixItems" => return None,
            "type" | "enum" | "const" | "required" | "description" | "title" | "$ref"
            | "default" => value.clone(),
            _ => continue,
        };
        kept.push((key.clone(), value));
    }
    if is_object {
        // One that lists no properties may hold anything.
        node.get("properties")?;
        kept.push(("additionalProperties".to_owned(), Node::Scalar(Value::Bool(false))));
    }
    Some(Node::Object(kept))
}

/// The schema that holds a whole answer in `json_schema` tool mode: some calls of `tools`, or an
/// answer, where there is one.
pub(crate) fn envelope(tools: &[(&str, Node)], calls_max: u32, answer: Option<Node>) -> Node {
    let answer_form = answer.map(|answer| closed([("answer", answer)]));
    if tools.is_empty() {
        return answer_form.unwrap_or_else(Node::any);
    }
    let call_forms = tools.iter().map(|(name, arguments)| {
        let name = Node::object([("const", Node::text(name))]);
        closed([("name", name), ("arguments", arguments.clone())])
    });
    let mut call_forms: Vec<Node> = call_forms.collect();
    let call = match call_forms.len() {
        1 => call_forms.swap_remove(0),
        _ => Node::object([("anyOf", Node::Array(call_forms))]),
    };
    let calls = Node::object([
        ("type", Node::text("array")),
        ("items", call),
        ("minItems", Node::Scalar(1.into())),
        ("maxItems", Node::Scalar(calls_max.into())),
    ]);
    let calls_form = closed([("tool_calls", calls)]);
    match answer_form {
        Some(answer_form) => Node::object([("anyOf", Node::Array(vec![calls_form, answer_form]))]),
        None => calls_form,
    }
}

fn closed<const N: usize>(properties: [(&str, Node); N]) -> Node {
    let required = Node::Array(properties.iter().map(|(name, _)| Node::text(name)).collect());
    Node::object([
        ("type", Node::text("object")),
        ("properties", Node::object(properties)),
        ("required", required),
        ("additionalProperties", Node::Scalar(Value::Bool(false))),
    ])
}
