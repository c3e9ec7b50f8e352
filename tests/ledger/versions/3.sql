BEGIN TRANSACTION;
CREATE TABLE actions (id INTEGER PRIMARY KEY, at DOUBLE NOT NULL, who TEXT NOT NULL, command TEXT NOT NULL,
            why TEXT NOT NULL, deliveries TEXT NOT NULL);
INSERT INTO "actions" VALUES(1,1700000012.0,'ann','resend','emptied','13');
INSERT INTO "actions" VALUES(2,1700000011.0,'ann','retry','because','8');
INSERT INTO "actions" VALUES(3,1700000013.0,'bob','discard','','14');
CREATE TABLE counts (
            folder TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (folder, state));
INSERT INTO "counts" VALUES('orders','queued',7);
INSERT INTO "counts" VALUES('orders','uploading',1);
INSERT INTO "counts" VALUES('orders','done',6);
INSERT INTO "counts" VALUES('orders','uploaded',1);
INSERT INTO "counts" VALUES('orders','held',1);
INSERT INTO "counts" VALUES('orders','failed',1);
INSERT INTO "counts" VALUES('orders','vanished',1);
CREATE TABLE deliveries (
            id INTEGER PRIMARY KEY, folder TEXT NOT NULL, path BLOB NOT NULL, current INTEGER,
            tenant TEXT NOT NULL, dataset TEXT NOT NULL, datatable TEXT NOT NULL,
            tenant_id TEXT NOT NULL, dataset_id TEXT NOT NULL, datatable_id TEXT NOT NULL,
            lane TEXT NOT NULL, state TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
            detail TEXT NOT NULL, size BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, ctime_ns BIGINT NOT NULL,
            inode BIGINT NOT NULL, device BIGINT NOT NULL, sha256 TEXT NOT NULL, inflight_sha256 TEXT,
            etag TEXT NOT NULL, seq BIGINT NOT NULL, attempts INTEGER NOT NULL, recoveries INTEGER NOT NULL,
            not_before DOUBLE NOT NULL, seen_at DOUBLE NOT NULL, settled_at DOUBLE NOT NULL,
            claimed_at DOUBLE NOT NULL, first_failed_at DOUBLE NOT NULL, uploaded_at DOUBLE NOT NULL,
            finished_at DOUBLE NOT NULL, presigned_url TEXT NOT NULL, duplicate_of INTEGER NOT NULL,
            previous_id INTEGER NOT NULL, kept INTEGER NOT NULL, location BLOB NOT NULL, released INTEGER NOT NULL DEFAULT 0, expected_sha256 TEXT NOT NULL DEFAULT '', sort_key BLOB NOT NULL DEFAULT x'', blocks INTEGER NOT NULL DEFAULT 0, resent INTEGER NOT NULL DEFAULT 0, process TEXT NOT NULL DEFAULT '', row_count BIGINT, arrival BIGINT NOT NULL DEFAULT 0);
INSERT INTO "deliveries" VALUES(1,'orders',X'6B6570742E637376',NULL,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','done','uploaded','','',1001,1700000001000000000,1700000001000000001,7,64768,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',NULL,'etag-a',1,1,0,0.0,1699999996.0,1700000001.0,1700000001.0,0.0,1700000001.0,1700000001.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,1);
INSERT INTO "deliveries" VALUES(2,'orders',X'6B6570742E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','done','uploaded','','',1002,1700000002000000000,1700000002000000001,7,64768,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',NULL,'etag-b',2,1,0,0.0,1699999997.0,1700000002.0,1700000002.0,0.0,1700000002.0,1700000002.0,'',0,1,1,X'',0,'',X'',0,0,'',NULL,2);
INSERT INTO "deliveries" VALUES(3,'orders',X'7375622F617263686976656420FF2E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','done','uploaded','','',1003,1700000003000000000,1700000003000000001,7,64768,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',NULL,'etag-c',3,1,0,0.0,1699999998.0,1700000003.0,1700000003.0,0.0,1700000003.0,1700000003.0,'',0,0,0,X'2F7372762F64726F702F6F72646572732F2E706D77617463682F617263686976652F323032332F31312F31342F61726368697665642E637376',0,'',X'',0,0,'',NULL,3);
INSERT INTO "deliveries" VALUES(4,'orders',X'73616D652E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','done','duplicate','duplicate','',1004,1700000004000000000,1700000004000000001,7,64768,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',NULL,'',4,1,0,0.0,1699999999.0,1700000004.0,1700000004.0,0.0,0.0,1700000004.0,'',1,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(5,'orders',X'68656C642E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','held','','crash_loop','5 times',1005,1700000005000000000,1700000005000000001,7,64768,'',NULL,'',5,1,0,0.0,1700000000.0,1700000005.0,1700000005.0,0.0,0.0,1700000005.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(6,'orders',X'6661696C65642E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','failed','','rejected','400',1006,1700000006000000000,1700000006000000001,7,64768,'',NULL,'',6,1,0,0.0,1700000001.0,1700000006.0,1700000006.0,0.0,0.0,1700000006.0,'',0,0,0,X'2F7372762F64726F702F6F72646572732F2E706D77617463682F71756172616E74696E652F6661696C65642E637376',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(7,'orders',X'76616E69736865642E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','vanished','','vanished','',1007,1700000007000000000,1700000007000000001,7,64768,'',NULL,'',7,1,0,0.0,1700000002.0,1700000007.0,1700000007.0,0.0,0.0,1700000007.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(8,'orders',X'616761696E2E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','queued','','retry','',1008,1700000008000000000,1700000008000000001,7,64768,'',NULL,'',8,1,0,0.0,1700000003.0,1700000008.0,1700000008.0,0.0,0.0,0.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(9,'orders',X'746F2062652061726368697665642E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','uploaded','uploaded','','',1009,1700000009000000000,1700000009000000001,7,64768,'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',NULL,'etag-d',9,1,0,1700000069.0,1700000004.0,1700000009.0,1700000009.0,0.0,1700000009.0,0.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,4);
INSERT INTO "deliveries" VALUES(10,'orders',X'6C6F737420616E737765722E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','queued','','answer_lost','no answer',1010,1700000010000000000,1700000010000000001,7,64768,'',NULL,'',10,1,0,1700000070.0,1700000005.0,1700000010.0,1700000010.0,1700000010.0,0.0,0.0,'https://bucket.s3.amazonaws.com/key?X-Amz-Signature=0123456789abcdef',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(11,'orders',X'756E646572207761792E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','uploading','','','',1011,1700000011000000000,1700000011000000001,7,64768,'',NULL,'',11,1,0,0.0,1700000006.0,1700000011.0,1700000011.0,0.0,0.0,0.0,'https://bucket.s3.amazonaws.com/key?X-Amz-Signature=0123456789abcdef',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(12,'orders',X'636F756E7465642E637376',NULL,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','done','uploaded','','',1012,1700000012000000000,1700000012000000001,7,64768,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',NULL,'etag-e',12,1,0,0.0,1700000007.0,1700000012.0,1700000012.0,0.0,1700000012.0,1700000012.0,'',0,0,1,X'',0,'',X'',0,0,'',4711,5);
INSERT INTO "deliveries" VALUES(13,'orders',X'636F756E7465642E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','queued','','resend','',1012,1700000012000000000,1700000012000000001,7,64768,'',NULL,'',13,0,0,0.0,1700000012.0,1700000012.0,0.0,0.0,0.0,0.0,'',12,0,1,X'',1,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',X'',0,1,'',NULL,0);
INSERT INTO "deliveries" VALUES(14,'orders',X'756E77616E7465642E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1~','done','discarded','discarded','',1013,1700000013000000000,1700000013000000001,7,64768,'',NULL,'',14,0,0,0.0,1700000008.0,1700000013.0,0.0,0.0,0.0,1700000013.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(15,'orders',X'6D6F64656C2E62706D6E',1,'acme','','','','','','?acme/process:Order to cash~','queued','','','',1014,1700000014000000000,1700000014000000001,7,64768,'',NULL,'',15,0,0,0.0,1700000009.0,1700000014.0,0.0,0.0,0.0,0.0,'',0,0,1,X'',0,'',X'',0,0,'Order to cash',NULL,0);
INSERT INTO "deliveries" VALUES(16,'orders',X'66697273742E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1','queued','','','',1015,1700000015000000000,1700000015000000001,7,64768,'',NULL,'',16,0,0,0.0,1700000010.0,1700000015.0,0.0,0.0,0.0,0.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(17,'orders',X'7365636F6E642E637376',1,'acme','Order to cash','Orders','tenant-1','dataset-1','table-1','tenant-1/table-1','queued','','','',1016,1700000016000000000,1700000016000000001,7,64768,'',NULL,'',17,0,0,0.0,1700000011.0,1700000016.0,0.0,0.0,0.0,0.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
INSERT INTO "deliveries" VALUES(18,'orders',X'756E7265736F6C7665642E637376',1,'acme','Order to cash','Invoices','','','','?acme/Order to cash/Invoices','queued','','','',1017,1700000017000000000,1700000017000000001,7,64768,'',NULL,'',18,0,0,0.0,1700000012.0,1700000017.0,0.0,0.0,0.0,0.0,'',0,0,1,X'',0,'',X'',0,0,'',NULL,0);
CREATE TABLE destinations (
            tenant TEXT NOT NULL, dataset TEXT NOT NULL, datatable TEXT NOT NULL, process TEXT NOT NULL,
            tenant_id TEXT NOT NULL, dataset_id TEXT NOT NULL, datatable_id TEXT NOT NULL,
            PRIMARY KEY (tenant, dataset, datatable, process));
INSERT INTO "destinations" VALUES('acme','Order to cash','Orders','','tenant-1','dataset-1','table-1');
CREATE TABLE lanes (lane TEXT PRIMARY KEY, ordered INTEGER NOT NULL, turn BIGINT NOT NULL);
INSERT INTO "lanes" VALUES('tenant-1/table-1',1,0);
INSERT INTO "lanes" VALUES('tenant-1/table-1~',0,12);
INSERT INTO "lanes" VALUES('?acme/process:Order to cash~',0,0);
INSERT INTO "lanes" VALUES('?acme/Order to cash/Invoices',1,0);
CREATE UNIQUE INDEX ux_current ON deliveries (folder, path, current);
CREATE UNIQUE INDEX ux_inflight ON deliveries (tenant_id, datatable_id, inflight_sha256);
CREATE INDEX ix_state ON deliveries (state, not_before);
CREATE INDEX ix_content ON deliveries (tenant_id, datatable_id, size, sha256);
CREATE INDEX ix_folder ON deliveries (folder, state, settled_at);
CREATE INDEX ix_uploaded ON deliveries (folder, uploaded_at);
CREATE INDEX ix_seq ON deliveries (seq);
CREATE INDEX ix_lane ON deliveries (lane, state, sort_key, seq);
CREATE INDEX ix_blocks ON deliveries (lane) WHERE blocks = 1;
CREATE INDEX ix_location ON deliveries (location);
CREATE INDEX ix_latest ON deliveries (tenant_id, datatable_id, arrival);
COMMIT;
PRAGMA user_version = 3;
