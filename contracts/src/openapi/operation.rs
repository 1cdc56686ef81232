//! One operation of the OpenAPI document, put together step by step.

use std::collections::BTreeMap;

use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        Content, ContentBuilder, Header, HttpMethod, ObjectBuilder, Paths, Ref, RefOr, Required,
        Response, ResponseBuilder, Schema, SecurityRequirement,
        path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::Type,
    },
};

use crate::{
    assertion::Scope,
    problem::{self, Code, ProblemDetails},
};

/// An operation, and the schemas it refers to.
pub(super) struct Operation {
    method: HttpMethod,
    path: &'static str,
    builder: OperationBuilder,
    parameters: Vec<Parameter>,
    responses: BTreeMap<u16, Response>,
    codes: Vec<Code>,
    schemas: Vec<(String, RefOr<Schema>)>,
}

type Text = &'static str;

pub(super) fn get(path: Text, id: Text, tag: Text, summary: Text) -> Operation {
    Operation::new(HttpMethod::Get, path, id, tag, summary)
}

pub(super) fn post(path: Text, id: Text, tag: Text, summary: Text) -> Operation {
    Operation::new(HttpMethod::Post, path, id, tag, summary)
}

pub(super) fn patch(path: Text, id: Text, tag: Text, summary: Text) -> Operation {
    Operation::new(HttpMethod::Patch, path, id, tag, summary)
}

pub(super) fn delete(path: Text, id: Text, tag: Text, summary: Text) -> Operation {
    Operation::new(HttpMethod::Delete, path, id, tag, summary)
}

impl Operation {
    fn new(method: HttpMethod, path: Text, id: Text, tag: Text, summary: Text) -> Self {
        Self {
            method,
            path,
            builder: OperationBuilder::new()
                .operation_id(Some(id))
                .tag(tag)
                .summary(Some(summary)),
            parameters: Vec::new(),
            responses: BTreeMap::new(),
            codes: Vec::new(),
            schemas: Vec::new(),
        }
    }

    /// The scope a credential must have; without this step none is needed at all.
    pub(super) fn needs(mut self, scope: Scope) -> Self {
        let securities =
            ["jwt", "api_key"].map(|name| SecurityRequirement::new(name, [scope.as_str()]));
        self.builder = self.builder.securities(Some(securities));
        self.refuses(&[
            Code::InvalidRequest,
            Code::InvalidToken,
            Code::AccessDenied,
            Code::RateLimitExceeded,
            Code::ServiceUnavailable,
        ])
    }

    /// Takes an `Idempotency-Key`.
    pub(super) fn idempotent(self, required: bool) -> Self {
        let rule = "Repeating a request with its key gives the same answer for 24 hours; where the \
            answer showed a secret, which is not kept, it gives 409.";
        let operation = self
            .header("Idempotency-Key", required, rule)
            .refuses(&[Code::IdempotencyConflict, Code::IdempotencyMismatch]);
        if required {
            operation.refuses(&[Code::IdempotencyKeyRequired])
        } else {
            operation
        }
    }

    pub(super) fn header(mut self, name: Text, required: bool, description: Text) -> Self {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(if required {
                Required::True
            } else {
                Required::False
            })
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        self.parameters.push(parameter.build());
        self
    }

    /// Takes an identifier in its path.
    pub(super) fn path_id<T: ToSchema>(mut self, name: Text) -> Self {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(self.schema::<T>()));
        self.parameters.push(parameter.build());
        self.refuses(&[Code::NotFound])
    }

    pub(super) fn query<T: IntoParams>(mut self) -> Self {
        self.parameters
            .extend(T::into_params(|| Some(ParameterIn::Query)));
        self
    }

    pub(super) fn body<T: ToSchema>(self) -> Self {
        self.body_that::<T>(Required::True)
    }

    pub(super) fn optional_body<T: ToSchema>(self) -> Self {
        self.body_that::<T>(Required::False)
    }

    fn body_that<T: ToSchema>(mut self, required: Required) -> Self {
        let content = Content::new(Some(self.schema::<T>()));
        let body = RequestBodyBuilder::new()
            .content("application/json", content)
            .required(Some(required));
        self.builder = self.builder.request_body(Some(body.build()));
        self.refuses(&[Code::InvalidContentType, Code::PayloadTooLarge])
    }

    pub(super) fn answers<T: ToSchema>(mut self, status: u16, description: Text) -> Self {
        let content = Content::new(Some(self.schema::<T>()));
        self.respond(status, description, "application/json", content)
    }

    pub(super) fn answers_nothing(self) -> Self {
        self.answers_without_body(204, "Done.")
    }

    pub(super) fn answers_without_body(mut self, status: u16, description: Text) -> Self {
        self.responses.insert(status, Response::new(description));
        self
    }

    /// Answers with a stream of `T`s.
    pub(super) fn streams<T: ToSchema>(mut self, media_type: Text, description: Text) -> Self {
        // OpenAPI 3.1 has no way to type the items of a stream: the schema is that of each.
        let content = ContentBuilder::new()
            .schema(Some(self.schema::<T>()))
            .build();
        self.respond(200, description, media_type, content)
    }

    /// The answer says in `Location` where the new thing is.
    pub(super) fn located(mut self) -> Self {
        let text: Schema = ObjectBuilder::new().schema_type(Type::String).into();
        for response in self.responses.values_mut() {
            response
                .headers
                .insert("Location".to_owned(), Header::new(text.clone()).into());
        }
        self
    }

    pub(super) fn refuses(mut self, codes: &[Code]) -> Self {
        self.codes.extend(codes);
        self
    }

    /// The schemas this refers to, by name.
    pub(super) fn schemas(&self) -> Vec<(String, RefOr<Schema>)> {
        let mut schemas = self.schemas.clone();
        schemas.push((
            ProblemDetails::name().into_owned(),
            ProblemDetails::schema(),
        ));
        ProblemDetails::schemas(&mut schemas);
        schemas
    }

    pub(super) fn add_to(self, paths: &mut Paths) {
        let mut builder = self.builder.parameters(Some(self.parameters));
        for (status, response) in self.responses {
            builder = builder.response(status.to_string(), response);
        }
        for (status, codes) in by_status(&self.codes) {
            builder = builder.response(status.to_string(), problem(&codes));
        }
        paths.add_path_operation(self.path, vec![self.method], builder.build());
    }

    fn schema<T: ToSchema>(&mut self) -> RefOr<Schema> {
        self.schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(&mut self.schemas);
        Ref::from_schema_name(T::name()).into()
    }

    fn respond(mut self, status: u16, text: Text, media_type: Text, content: Content) -> Self {
        let response = ResponseBuilder::new()
            .description(text)
            .content(media_type, content);
        self.responses.insert(status, response.build());
        self
    }
}

/// The codes of each status, each once.
fn by_status(codes: &[Code]) -> BTreeMap<u16, Vec<Code>> {
    let mut statuses: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        let same = statuses.entry(code.status().as_u16()).or_default();
        if !same.contains(code) {
            same.push(*code);
        }
    }
    statuses
}

fn problem(codes: &[Code]) -> Response {
    let names: Vec<_> = codes
        .iter()
        .map(|code| format!("`{}`", code.as_str()))
        .collect();
    let content = Content::new(Some(Ref::from_schema_name(ProblemDetails::name())));
    ResponseBuilder::new()
        .description(names.join(", "))
        .content(problem::CONTENT_TYPE, content)
        .build()
}
