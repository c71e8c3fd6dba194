-- Webhooks of all owners pause unless they are renewed. Those that there are get the whole time from now on.
UPDATE webhooks SET updated_at = now() WHERE all_owners;
