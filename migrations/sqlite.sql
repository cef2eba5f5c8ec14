CREATE TABLE accounts (
	id VARCHAR(160) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	balance_pusd VARCHAR(40) NOT NULL, 
	CONSTRAINT pk_accounts PRIMARY KEY (id)
);
CREATE TABLE admin_sessions (
	token_hash BLOB NOT NULL, 
	user_id VARCHAR(64) NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	last_seen_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_admin_sessions PRIMARY KEY (token_hash), 
	CONSTRAINT fk_admin_sessions_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id)
);
CREATE TABLE admin_tokens (
	id VARCHAR(64) NOT NULL, 
	token_hash BLOB NOT NULL, 
	user_id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	role VARCHAR(32) NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT, 
	revoked_at_ns BIGINT, 
	CONSTRAINT pk_admin_tokens PRIMARY KEY (id), 
	CONSTRAINT fk_admin_tokens_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id), 
	CONSTRAINT uq_admin_tokens_token_hash UNIQUE (token_hash)
);
CREATE TABLE admin_users (
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	role VARCHAR(32) NOT NULL, 
	password_hash VARCHAR(200), 
	created_at_ns BIGINT NOT NULL, 
	disabled_at_ns BIGINT, 
	CONSTRAINT pk_admin_users PRIMARY KEY (id), 
	CONSTRAINT uq_admin_users_name UNIQUE (name)
);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('late_charges');
CREATE TABLE alert_deliveries (
	id VARCHAR(64) NOT NULL, 
	rule_id VARCHAR(64) NOT NULL, 
	channel VARCHAR(16) NOT NULL, 
	target TEXT NOT NULL, 
	message JSON NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	due_ns BIGINT, 
	attempts INTEGER NOT NULL, 
	sent_at_ns BIGINT, 
	problem TEXT, 
	CONSTRAINT pk_alert_deliveries PRIMARY KEY (id)
);
CREATE TABLE alert_rules (
	id VARCHAR(64) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	scope VARCHAR(16), 
	scope_id VARCHAR(128), 
	threshold BIGINT NOT NULL, 
	channel VARCHAR(16) NOT NULL, 
	target TEXT NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_alert_rules PRIMARY KEY (id)
);
CREATE TABLE alert_states (
	rule_id VARCHAR(64) NOT NULL, 
	subject VARCHAR(200) NOT NULL, 
	period_ns BIGINT NOT NULL, 
	crossed BOOLEAN NOT NULL, 
	CONSTRAINT pk_alert_states PRIMARY KEY (rule_id, subject)
);
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at_ns BIGINT NOT NULL, 
	actor VARCHAR(200) NOT NULL, 
	action VARCHAR(64) NOT NULL, 
	subject VARCHAR(200) NOT NULL, 
	"before" JSON, 
	"after" JSON, 
	note TEXT, hash BLOB NOT NULL, organisation_id VARCHAR(64), 
	CONSTRAINT pk_audit PRIMARY KEY (id)
);
CREATE TABLE batch_lines (
	batch_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	custom_id VARCHAR(512) NOT NULL, 
	body BLOB NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	tries INTEGER NOT NULL, 
	owner VARCHAR(200), 
	lease_until_ns BIGINT NOT NULL, 
	not_before_ns BIGINT NOT NULL, 
	good BOOLEAN, 
	result BLOB, 
	CONSTRAINT pk_batch_lines PRIMARY KEY (batch_id, number), 
	CONSTRAINT fk_batch_lines_batch_id_batches FOREIGN KEY(batch_id) REFERENCES batches (id)
);
CREATE TABLE batches (
	id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	endpoint VARCHAR(64) NOT NULL, 
	input_file_id VARCHAR(64) NOT NULL, 
	output_file_id VARCHAR(64), 
	error_file_id VARCHAR(64), 
	metadata BLOB, 
	errors BLOB, 
	status VARCHAR(16) NOT NULL, 
	total INTEGER NOT NULL, 
	completed INTEGER NOT NULL, 
	failed INTEGER NOT NULL, 
	owner VARCHAR(200), 
	lease_until_ns BIGINT NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	finalizing_at_ns BIGINT, 
	cancelling_at_ns BIGINT, 
	ended_at_ns BIGINT, 
	CONSTRAINT pk_batches PRIMARY KEY (id), 
	CONSTRAINT fk_batches_project_id_projects FOREIGN KEY(project_id) REFERENCES projects (id)
);
CREATE TABLE body_log_projects (
	project_id VARCHAR(64) NOT NULL, 
	days INTEGER NOT NULL, 
	detectors JSON NOT NULL, 
	CONSTRAINT pk_body_log_projects PRIMARY KEY (project_id), 
	CONSTRAINT fk_body_log_projects_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);
CREATE TABLE body_logs (
	id INTEGER NOT NULL, 
	request_id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	key_id VARCHAR(32) NOT NULL, 
	wrapped BLOB NOT NULL, 
	ciphertext BLOB NOT NULL, salted_for VARCHAR(64), 
	CONSTRAINT pk_body_logs PRIMARY KEY (id)
);
CREATE TABLE budgets (
	scope VARCHAR(16) NOT NULL, 
	scope_id VARCHAR(128) NOT NULL, 
	period VARCHAR(8) NOT NULL, 
	limit_pusd BIGINT NOT NULL, 
	changed_at_ns BIGINT NOT NULL, kind VARCHAR(8) DEFAULT 'hard' NOT NULL, slow_rpm BIGINT DEFAULT 0 NOT NULL, slow_from_percent INTEGER DEFAULT 100 NOT NULL, raise_pusd BIGINT DEFAULT 0 NOT NULL, raise_until_ns BIGINT, 
	CONSTRAINT pk_budgets PRIMARY KEY (scope, scope_id, period), 
	CONSTRAINT ck_budgets_limit_not_negative CHECK (limit_pusd >= 0)
);
CREATE TABLE catalogue_versions (
	number INTEGER NOT NULL, 
	at_ns BIGINT NOT NULL, 
	actor VARCHAR(200) NOT NULL, 
	change VARCHAR(400) NOT NULL, 
	document BLOB NOT NULL, 
	CONSTRAINT pk_catalogue_versions PRIMARY KEY (number)
);
CREATE TABLE chores (
	name VARCHAR(64) NOT NULL, 
	due_ns BIGINT NOT NULL, 
	holder VARCHAR(64), 
	done_ns BIGINT, 
	problem TEXT, 
	CONSTRAINT pk_chores PRIMARY KEY (name)
);
CREATE TABLE exchange_rates (
	currency VARCHAR(3) NOT NULL, 
	effective_from_ns BIGINT NOT NULL, 
	per_usd_nano BIGINT NOT NULL, 
	source VARCHAR(200) NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_exchange_rates PRIMARY KEY (currency, effective_from_ns), 
	CONSTRAINT ck_exchange_rates_ck_exchange_rates_rate_positive CHECK (per_usd_nano > 0)
);
CREATE TABLE export_queue (
	export VARCHAR(200) NOT NULL, 
	record_id VARCHAR(128) NOT NULL, 
	due_ns BIGINT NOT NULL, 
	attempts INTEGER DEFAULT 0 NOT NULL, 
	problem TEXT, 
	CONSTRAINT pk_export_queue PRIMARY KEY (export, record_id)
);
CREATE TABLE file_pieces (
	file_id VARCHAR(64) NOT NULL, 
	place INTEGER NOT NULL, 
	data BLOB NOT NULL, 
	CONSTRAINT pk_file_pieces PRIMARY KEY (file_id, place)
);
CREATE TABLE files (
	id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	filename VARCHAR(255) NOT NULL, 
	purpose VARCHAR(32) NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_files PRIMARY KEY (id), 
	CONSTRAINT fk_files_project_id_projects FOREIGN KEY(project_id) REFERENCES projects (id)
);
CREATE TABLE gateways (
	id VARCHAR(64) NOT NULL, 
	seen_at_ns BIGINT NOT NULL, limits_away_since_ns BIGINT, 
	CONSTRAINT pk_gateways PRIMARY KEY (id)
);
CREATE TABLE grants (
	id VARCHAR(140) NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	amount_pusd BIGINT NOT NULL, 
	granted_at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	expired_at_ns BIGINT, 
	CONSTRAINT pk_grants PRIMARY KEY (id)
);
CREATE TABLE guardrail_reports (
	id INTEGER NOT NULL, 
	request_id VARCHAR(64) NOT NULL, 
	at_ns BIGINT NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	alias VARCHAR(200) NOT NULL, 
	outcome VARCHAR(16) NOT NULL, 
	findings JSON NOT NULL, 
	CONSTRAINT pk_guardrail_reports PRIMARY KEY (id)
);
CREATE TABLE guardrails (
	id VARCHAR(64) NOT NULL, 
	scope VARCHAR(16) NOT NULL, 
	scope_id VARCHAR(64) NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	stage VARCHAR(8) NOT NULL, 
	action VARCHAR(8) NOT NULL, 
	position INTEGER NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	message VARCHAR(1000), 
	spec JSON NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_guardrails PRIMARY KEY (id)
);
CREATE TABLE identities (
	issuer VARCHAR(500) NOT NULL, 
	subject VARCHAR(255) NOT NULL, 
	user_id VARCHAR(64) NOT NULL, 
	email VARCHAR(320), 
	created_at_ns BIGINT NOT NULL, 
	last_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_identities PRIMARY KEY (issuer, subject), 
	CONSTRAINT fk_identities_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id)
);
CREATE TABLE journal_offsets (
	segment VARCHAR(300) NOT NULL, 
	offset_bytes BIGINT NOT NULL, 
	CONSTRAINT pk_journal_offsets PRIMARY KEY (segment)
);
CREATE TABLE key_secrets (
	public_id VARCHAR(32) NOT NULL, 
	secret_hash BLOB NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	until_ns BIGINT NOT NULL, 
	CONSTRAINT pk_key_secrets PRIMARY KEY (public_id), 
	CONSTRAINT fk_key_secrets_key_id FOREIGN KEY(key_id) REFERENCES virtual_keys (id)
);
CREATE TABLE late_charges (
	id INTEGER NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	CONSTRAINT pk_late_charges PRIMARY KEY (id)
);
CREATE TABLE loss_modes (
	scope VARCHAR(16) NOT NULL, 
	scope_id VARCHAR(64) NOT NULL, 
	mode VARCHAR(8) NOT NULL, 
	CONSTRAINT pk_loss_modes PRIMARY KEY (scope, scope_id)
);
CREATE TABLE margins (
	scope VARCHAR(16) NOT NULL, 
	scope_id VARCHAR(64) NOT NULL, 
	margin_bps INTEGER NOT NULL, 
	changed_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_margins PRIMARY KEY (scope, scope_id), 
	CONSTRAINT ck_margins_ck_margins_margin_not_negative CHECK (margin_bps >= 0)
);
CREATE TABLE memberships (
	user_id VARCHAR(64) NOT NULL, 
	scope VARCHAR(16) NOT NULL, 
	scope_id VARCHAR(64) NOT NULL, 
	source VARCHAR(80) NOT NULL, 
	role VARCHAR(32) NOT NULL, 
	models JSON, 
	created_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_memberships PRIMARY KEY (user_id, scope, scope_id, source), 
	CONSTRAINT fk_memberships_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id)
);
CREATE TABLE oidc_sign_ins (
	state_hash BLOB NOT NULL, 
	browser_hash BLOB NOT NULL, 
	provider VARCHAR(80) NOT NULL, 
	nonce VARCHAR(64) NOT NULL, 
	verifier VARCHAR(128) NOT NULL, 
	next VARCHAR(500) NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_oidc_sign_ins PRIMARY KEY (state_hash)
);
CREATE TABLE organisations (
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	credit_limit_pusd BIGINT, 
	created_at_ns BIGINT NOT NULL, currency VARCHAR(3) DEFAULT 'USD' NOT NULL, 
	CONSTRAINT pk_organisations PRIMARY KEY (id), 
	CONSTRAINT uq_organisations_name UNIQUE (name)
);
CREATE TABLE passkey_challenges (
	challenge_hash BLOB NOT NULL, 
	user_id VARCHAR(64), 
	expires_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_passkey_challenges PRIMARY KEY (challenge_hash)
);
CREATE TABLE passkeys (
	id VARCHAR(64) NOT NULL, 
	credential_id BLOB NOT NULL, 
	user_id VARCHAR(64) NOT NULL, 
	public_key BLOB NOT NULL, 
	sign_count BIGINT NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	synced BOOLEAN NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	last_at_ns BIGINT, 
	CONSTRAINT pk_passkeys PRIMARY KEY (id), 
	CONSTRAINT fk_passkeys_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id), 
	CONSTRAINT uq_passkeys_credential_id UNIQUE (credential_id)
);
CREATE TABLE plan_members (
	organisation_id VARCHAR(64) NOT NULL, 
	"plan" VARCHAR(64) NOT NULL, 
	CONSTRAINT pk_plan_members PRIMARY KEY (organisation_id)
);
CREATE TABLE price_models (
	provider VARCHAR(64) NOT NULL, 
	model VARCHAR(256) NOT NULL, 
	"match" JSON, 
	position INTEGER NOT NULL, 
	CONSTRAINT pk_price_models PRIMARY KEY (provider, model)
);
CREATE TABLE prices (
	id VARCHAR(64) NOT NULL, 
	provider VARCHAR(64) NOT NULL, 
	model VARCHAR(256) NOT NULL, 
	effective_from_ns BIGINT NOT NULL, 
	position INTEGER NOT NULL, 
	rates JSON NOT NULL, 
	source VARCHAR(64) NOT NULL, 
	created_at_ns BIGINT NOT NULL, variant VARCHAR(32) DEFAULT '' NOT NULL, 
	CONSTRAINT pk_prices PRIMARY KEY (id)
);
CREATE TABLE project_routing (
	project_id VARCHAR(64) NOT NULL, 
	second_pusd BIGINT, 
	cache_prompts BOOLEAN, 
	CONSTRAINT pk_project_routing PRIMARY KEY (project_id), 
	CONSTRAINT fk_project_routing_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);
CREATE TABLE projects (
	id VARCHAR(64) NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	created_at_ns BIGINT NOT NULL, team_id VARCHAR(64) CONSTRAINT fk_projects_team_id_teams REFERENCES teams (id), 
	CONSTRAINT pk_projects PRIMARY KEY (id), 
	CONSTRAINT fk_projects_organisation_id FOREIGN KEY(organisation_id) REFERENCES organisations (id), 
	CONSTRAINT uq_projects_organisation_id_name UNIQUE (organisation_id, name)
);
CREATE TABLE provider_credentials (
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	key_id VARCHAR(32) NOT NULL, 
	wrapped BLOB NOT NULL, 
	ciphertext BLOB NOT NULL, 
	shown JSON NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	changed_at_ns BIGINT NOT NULL, 
	changed_by VARCHAR(200) NOT NULL, 
	CONSTRAINT pk_provider_credentials PRIMARY KEY (id), 
	CONSTRAINT uq_provider_credentials_name UNIQUE (name)
);
CREATE TABLE rate_limits (
	scope VARCHAR(16) NOT NULL, 
	scope_id VARCHAR(128) NOT NULL, 
	unit VARCHAR(16) NOT NULL, 
	window_ms BIGINT NOT NULL, 
	amount BIGINT NOT NULL, 
	CONSTRAINT pk_rate_limits PRIMARY KEY (scope, scope_id, unit, window_ms), 
	CONSTRAINT ck_rate_limits_amount_not_negative CHECK (amount >= 0), 
	CONSTRAINT ck_rate_limits_window_positive CHECK (window_ms > 0)
);
CREATE TABLE response_pieces (
	response_id VARCHAR(64) NOT NULL, 
	place INTEGER NOT NULL, 
	data BLOB NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_response_pieces PRIMARY KEY (response_id, place)
);
CREATE TABLE scim_groups (
	id VARCHAR(64) NOT NULL, 
	display_name VARCHAR(255) NOT NULL, 
	external_id VARCHAR(255), 
	created_at_ns BIGINT NOT NULL, 
	changed_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_scim_groups PRIMARY KEY (id), 
	CONSTRAINT uq_scim_groups_display_name UNIQUE (display_name)
);
CREATE TABLE scim_members (
	group_id VARCHAR(64) NOT NULL, 
	user_id VARCHAR(64) NOT NULL, 
	CONSTRAINT pk_scim_members PRIMARY KEY (group_id, user_id), 
	CONSTRAINT fk_scim_members_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id), 
	CONSTRAINT fk_scim_members_group_id FOREIGN KEY(group_id) REFERENCES scim_groups (id)
);
CREATE TABLE scim_tokens (
	id VARCHAR(64) NOT NULL, 
	token_hash BLOB NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	created_by VARCHAR(200) NOT NULL, 
	last_at_ns BIGINT, 
	revoked_at_ns BIGINT, 
	CONSTRAINT pk_scim_tokens PRIMARY KEY (id), 
	CONSTRAINT uq_scim_tokens_token_hash UNIQUE (token_hash)
);
CREATE TABLE scim_users (
	user_id VARCHAR(64) NOT NULL, 
	user_name VARCHAR(200) NOT NULL, 
	external_id VARCHAR(255), 
	resource JSON NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	changed_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_scim_users PRIMARY KEY (user_id), 
	CONSTRAINT fk_scim_users_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id), 
	CONSTRAINT uq_scim_users_user_name UNIQUE (user_name)
);
CREATE TABLE session_origins (
	token_hash BLOB NOT NULL, 
	provider VARCHAR(80) NOT NULL, 
	id_token TEXT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_session_origins PRIMARY KEY (token_hash)
);
CREATE TABLE sign_in_failures (
	id VARCHAR(64) NOT NULL, 
	subject VARCHAR(260) NOT NULL, 
	at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_sign_in_failures PRIMARY KEY (id)
);
CREATE TABLE sign_in_links (
	token_hash BLOB NOT NULL, 
	user_id VARCHAR(64) NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	used_at_ns BIGINT, 
	CONSTRAINT pk_sign_in_links PRIMARY KEY (token_hash), 
	CONSTRAINT fk_sign_in_links_user_id FOREIGN KEY(user_id) REFERENCES admin_users (id)
);
CREATE TABLE stored_responses (
	project_id VARCHAR(64) NOT NULL, 
	id VARCHAR(128) NOT NULL, 
	conversation BLOB NOT NULL, 
	body BLOB NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	expires_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_stored_responses PRIMARY KEY (project_id, id), 
	CONSTRAINT fk_stored_responses_project_id_projects FOREIGN KEY(project_id) REFERENCES projects (id)
);
CREATE TABLE teams (
	id VARCHAR(64) NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	created_at_ns BIGINT NOT NULL, 
	CONSTRAINT pk_teams PRIMARY KEY (id), 
	CONSTRAINT fk_teams_organisation_id_organisations FOREIGN KEY(organisation_id) REFERENCES organisations (id), 
	CONSTRAINT uq_teams_organisation_id_name UNIQUE (organisation_id, name)
);
CREATE TABLE tenant_salts (
	organisation_id VARCHAR(64) NOT NULL, 
	salt BLOB NOT NULL, 
	CONSTRAINT pk_tenant_salts PRIMARY KEY (organisation_id), 
	CONSTRAINT fk_tenant_salts_organisation_id FOREIGN KEY(organisation_id) REFERENCES organisations (id)
);
CREATE TABLE transfers (
	id VARCHAR(160) NOT NULL, 
	debit VARCHAR(160) NOT NULL, 
	credit VARCHAR(160) NOT NULL, 
	amount_pusd BIGINT NOT NULL, 
	at_ns BIGINT NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	record_id VARCHAR(128), 
	note VARCHAR(500), 
	CONSTRAINT pk_transfers PRIMARY KEY (id), 
	CONSTRAINT fk_transfers_debit FOREIGN KEY(debit) REFERENCES accounts (id), 
	CONSTRAINT fk_transfers_credit FOREIGN KEY(credit) REFERENCES accounts (id), 
	CONSTRAINT ck_transfers_amount_positive CHECK (amount_pusd > 0), 
	CONSTRAINT ck_transfers_two_accounts CHECK (debit <> credit)
);
CREATE TABLE usage_day_facets (
	day BIGINT NOT NULL, 
	facet VARCHAR(16) NOT NULL, 
	name TEXT, 
	organisation_id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	failed BIGINT NOT NULL, 
	requests BIGINT NOT NULL, 
	input_tokens BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	estimated BIGINT NOT NULL, 
	unpriced BIGINT NOT NULL, 
	charge_usd BIGINT NOT NULL, 
	charge_rest_pusd BIGINT NOT NULL, 
	cost_usd BIGINT NOT NULL, 
	cost_rest_pusd BIGINT NOT NULL
);
CREATE TABLE usage_day_waits (
	day BIGINT NOT NULL, 
	provider TEXT NOT NULL, 
	first_token_ms BIGINT NOT NULL, 
	requests BIGINT NOT NULL
);
CREATE TABLE usage_days (
	day BIGINT NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	alias TEXT NOT NULL, 
	model TEXT NOT NULL, 
	provider TEXT NOT NULL, 
	deployment TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	dialect TEXT NOT NULL, 
	requests BIGINT NOT NULL, 
	input_tokens BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	estimated BIGINT NOT NULL, 
	unpriced BIGINT NOT NULL, 
	charge_usd BIGINT NOT NULL, 
	charge_rest_pusd BIGINT NOT NULL, 
	cost_usd BIGINT NOT NULL, 
	cost_rest_pusd BIGINT NOT NULL
);
CREATE TABLE usage_hours (
	id VARCHAR(64) NOT NULL, 
	hour BIGINT NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	alias TEXT NOT NULL, 
	model TEXT NOT NULL, 
	provider TEXT NOT NULL, 
	deployment TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	dialect TEXT NOT NULL, 
	requests BIGINT NOT NULL, 
	input_tokens BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	estimated BIGINT NOT NULL, 
	unpriced BIGINT NOT NULL, 
	charge_usd BIGINT NOT NULL, 
	charge_rest_pusd BIGINT NOT NULL, 
	cost_usd BIGINT NOT NULL, 
	cost_rest_pusd BIGINT NOT NULL, 
	CONSTRAINT pk_usage_hours PRIMARY KEY (id)
);
CREATE TABLE usage_records (
	id VARCHAR(128) NOT NULL, 
	at_ns BIGINT NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	end_user TEXT, 
	alias TEXT NOT NULL, 
	provider TEXT NOT NULL, 
	model TEXT NOT NULL, 
	deployment TEXT NOT NULL, 
	price_id VARCHAR(64) NOT NULL, 
	quantities JSON NOT NULL, 
	input_tokens BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	charge_pusd BIGINT, 
	cost_pusd BIGINT, 
	hold_pusd BIGINT NOT NULL, 
	estimated BOOLEAN NOT NULL, 
	outcome VARCHAR(32) NOT NULL, 
	finish_reason TEXT, 
	first_token_ms BIGINT, 
	duration_ms BIGINT, 
	status INTEGER, 
	dialect VARCHAR(64) NOT NULL, 
	tags JSON NOT NULL, 
	attempts INTEGER NOT NULL, 
	upstream_id TEXT, variant TEXT DEFAULT '' NOT NULL, way TEXT, 
	CONSTRAINT pk_usage_records PRIMARY KEY (id)
);
CREATE TABLE usage_sealed (
	day BIGINT NOT NULL, 
	pruned BOOLEAN NOT NULL, 
	CONSTRAINT pk_usage_sealed PRIMARY KEY (day)
);
CREATE TABLE virtual_keys (
	id VARCHAR(64) NOT NULL, 
	public_id VARCHAR(32) NOT NULL, 
	secret_hash BLOB NOT NULL, 
	organisation_id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	models JSON, 
	allow_ips JSON, 
	rpm BIGINT, 
	tpm BIGINT, 
	parallel BIGINT, 
	expires_at_ns BIGINT, 
	revoked_at_ns BIGINT, 
	created_at_ns BIGINT NOT NULL, 
	created_by VARCHAR(200) NOT NULL, weight INTEGER, 
	CONSTRAINT pk_virtual_keys PRIMARY KEY (id), 
	CONSTRAINT uq_virtual_keys_public_id UNIQUE (public_id), 
	CONSTRAINT fk_virtual_keys_organisation_id FOREIGN KEY(organisation_id) REFERENCES organisations (id), 
	CONSTRAINT fk_virtual_keys_project_id FOREIGN KEY(project_id) REFERENCES projects (id)
);
CREATE INDEX ix_transfers_debit_at_ns ON transfers (debit, at_ns);
CREATE INDEX ix_transfers_credit_at_ns ON transfers (credit, at_ns);
CREATE INDEX ix_usage_records_key_id_at_ns ON usage_records (key_id, at_ns);
CREATE INDEX ix_usage_records_project_id_at_ns ON usage_records (project_id, at_ns);
CREATE INDEX ix_usage_records_organisation_id_at_ns ON usage_records (organisation_id, at_ns);
CREATE INDEX ix_usage_records_at_ns ON usage_records (at_ns);
CREATE INDEX ix_usage_records_unpriced ON usage_records (id) WHERE charge_pusd IS NULL;
CREATE INDEX ix_virtual_keys_project_id ON virtual_keys (project_id);
CREATE INDEX ix_audit_at_ns ON audit (at_ns);
CREATE INDEX ix_audit_subject_at_ns ON audit (subject, at_ns);
CREATE INDEX ix_admin_sessions_expires_at_ns ON admin_sessions (expires_at_ns);
CREATE INDEX ix_admin_sessions_user_id ON admin_sessions (user_id);
CREATE INDEX ix_sign_in_failures_subject_at_ns ON sign_in_failures (subject, at_ns);
CREATE INDEX ix_grants_organisation_id ON grants (organisation_id);
CREATE INDEX ix_stored_responses_expires_at_ns ON stored_responses (expires_at_ns);
CREATE INDEX ix_usage_hours_hour ON usage_hours (hour);
CREATE INDEX ix_usage_days_day ON usage_days (day);
CREATE INDEX ix_usage_day_facets_facet_day ON usage_day_facets (facet, day);
CREATE INDEX ix_usage_day_waits_day ON usage_day_waits (day);
CREATE INDEX ix_alert_deliveries_due_ns ON alert_deliveries (due_ns);
CREATE INDEX ix_alert_deliveries_created_at_ns ON alert_deliveries (created_at_ns);
CREATE INDEX ix_export_queue_export_due_ns ON export_queue (export, due_ns);
CREATE INDEX ix_files_project_id_created_at_ns ON files (project_id, created_at_ns);
CREATE INDEX ix_files_expires_at_ns ON files (expires_at_ns);
CREATE INDEX ix_batches_project_id_created_at_ns ON batches (project_id, created_at_ns);
CREATE INDEX ix_batches_status_created_at_ns ON batches (status, created_at_ns);
CREATE INDEX ix_batch_lines_state_owner ON batch_lines (state, owner);
CREATE INDEX ix_memberships_scope_scope_id ON memberships (scope, scope_id);
CREATE INDEX ix_identities_user_id ON identities (user_id);
CREATE INDEX ix_oidc_sign_ins_expires_at_ns ON oidc_sign_ins (expires_at_ns);
CREATE INDEX ix_session_origins_expires_at_ns ON session_origins (expires_at_ns);
CREATE INDEX ix_passkeys_user_id ON passkeys (user_id);
CREATE INDEX ix_passkey_challenges_expires_at_ns ON passkey_challenges (expires_at_ns);
CREATE INDEX ix_scim_users_external_id ON scim_users (external_id);
CREATE INDEX ix_scim_members_user_id ON scim_members (user_id);
CREATE INDEX ix_key_secrets_key_id ON key_secrets (key_id);
CREATE INDEX ix_guardrails_scope_scope_id ON guardrails (scope, scope_id);
CREATE INDEX ix_guardrail_reports_request_id ON guardrail_reports (request_id);
CREATE INDEX ix_guardrail_reports_at_ns ON guardrail_reports (at_ns);
CREATE INDEX ix_response_pieces_expires_at_ns ON response_pieces (expires_at_ns);
CREATE INDEX ix_body_logs_request_id ON body_logs (request_id);
CREATE INDEX ix_body_logs_expires_at_ns ON body_logs (expires_at_ns);
CREATE INDEX ix_virtual_keys_created_at_ns_id ON virtual_keys (created_at_ns, id);
CREATE INDEX ix_audit_organisation_id_id ON audit (organisation_id, id);
